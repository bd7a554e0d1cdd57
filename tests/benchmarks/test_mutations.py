"""The audit's count: that it is all handled, and that it would say so if it were not."""

import collections
import tarfile

from benchmarks import mutations
from contextdiff_jax.data import json_object, tar_index
from tests.data import mutated_data
from tests.data.judged_data import judge


def totals(counts: collections.Counter) -> dict[str, int]:
    found: collections.Counter = collections.Counter()
    for (_, result), count in counts.items():
        found[result] += count
    return dict(found)


def test_all_are_handled(capsys):
    counts = mutations.main(["--inputs=44"])
    assert totals(counts) == {"handled": 44}
    assert capsys.readouterr().out.splitlines()[-1] == "44 inputs: 44 handled, 0 escaped, 0 hung"


def test_what_escapes_is_counted_and_named(monkeypatch, capsys):
    monkeypatch.setattr(json_object, "ValueError", KeyError, raising=False)
    counts = mutations.main(["--inputs=33"])
    assert counts["row", "escaped"] > 0
    assert "(row): escaped: JSONDecodeError" in capsys.readouterr().out


def test_what_does_not_end_is_counted(monkeypatch, tmp_path):
    def backwards(field: bytes) -> int:
        return int(field.strip(b"\0 ") or b"0", 8)

    monkeypatch.setattr(tar_index, "_octal", backwards)
    data = mutated_data.tar(mutated_data.sample("a", 100), tarfile.USTAR_FORMAT)
    header = bytearray(data[:512])
    header[124:136] = b"-0000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    found = mutated_data.shards(tmp_path, bytes(header) + data[512:], {})
    monkeypatch.setattr(mutations, "make_input", lambda *_: ("tar", found))
    assert mutations.run_one(0, 0, 1.0) == ("tar", "hung")
    monkeypatch.undo()
    judge(found)

# shellcheck shell=bash disable=SC2034
# What the launch scripts share: arguments, quoting, printing before doing, checks. Sourced only.
#
# A script declares its options with their defaults and calls parse:
#
#   declare -A OPTION=([name]=contextdiff [zone]="" [spot]=false)
#   ACTIONS="create delete"          # optional: the first argument must be one of these
#   parse "$@"                       # fills ACTION, OPTION and REST (what follows --)
#
# --help prints the comment at the head of the script, --dry-run only prints what would run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "bash $BASH_VERSION: the launch scripts need bash 4.4 or newer" >&2
  exit 2
fi

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ACTION="" REST=() DRY_RUN=false

# die SENTENCE: bad arguments or a missing tool, exit code 2 as in contextdiff_jax/entry.py.
die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# quote WORD...: one line that a shell reads back as exactly these words.
quote() {
  local word line=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      line+=("$word")
    else
      line+=("'${word//\'/\'\\\'\'}'")
    fi
  done
  echo "${line[*]}"
}

# run COMMAND...: prints the command on stdout, then runs it unless this is a dry run.
run() {
  quote "$@"
  $DRY_RUN || "$@"
}

# ask DEFAULT COMMAND...: prints and runs a query, answer=$(ask ...); a dry run answers DEFAULT.
exec 3>&1 # the script's own stdout, where $(...) takes the answer
ask() {
  quote "${@:2}" >&3
  if $DRY_RUN; then echo "$1"; else "${@:2}"; fi
}

# need TOOL HOW-TO-GET-IT: ends with a sentence when the tool is missing; a dry run needs none.
need() {
  $DRY_RUN || command -v "$1" >/dev/null || die "$1 is not installed: $2"
}

# required OPTION...: each of these options must have a value.
required() {
  local key
  for key in "$@"; do
    [[ -n ${OPTION[$key]} ]] || die "--$key is missing; see --help"
  done
}

# among VALUE CHOICE...: whether the value is one of the choices.
among() {
  local known
  for known in "${@:2}"; do
    [[ $1 != "$known" ]] || return 0
  done
  return 1
}

# choice OPTION VALUE...: the option must be one of the values.
choice() {
  among "${OPTION[$1]}" "${@:2}" || die "--$1=${OPTION[$1]}: must be one of ${*:2}"
}

# whole LOW HIGH OPTION...: each of these options must be a whole number in LOW..HIGH, written
# without sign or leading zeros (bash reads 010 as 8).
whole() {
  local key value sentence
  for key in "${@:3}"; do
    value=${OPTION[$key]} sentence="--$key=${OPTION[$key]}: must be a whole number in $1..$2"
    # Nine digits at most, so that no comparison overflows.
    [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] || die "$sentence"
    ((value >= $1 && value <= $2)) || die "$sentence"
  done
}

# plain OPTION...: each of these options must be empty, or a word of characters that no shell, YAML
# or command line reads as something else.
plain() {
  local key
  for key in "$@"; do
    [[ ${OPTION[$key]} =~ ^([A-Za-z0-9][A-Za-z0-9._:@/-]*)?$ ]] ||
      die "--$key=${OPTION[$key]}: must consist of letters, digits and . _ : @ / -, and begin with a letter or digit"
  done
}

# one_line WORD...: no word may hold a line end or another control character, nor what YAML takes
# for a line end (U+0085, U+2028, U+2029).
one_line() {
  local word LC_ALL=C
  for word in "$@"; do
    case $word in
      *[[:cntrl:]]* | *$'\xc2\x85'* | *$'\xe2\x80\xa8'* | *$'\xe2\x80\xa9'*)
        die "$(printf %q "$word"): must not hold line ends or control characters"
        ;;
    esac
  done
}

parse() {
  local argument key
  one_line "$@"
  if [[ -n ${ACTIONS:-} && ${1:-} != --help ]]; then
    # shellcheck disable=SC2086  # a list
    among "${1:-}" $ACTIONS || die "${1:-no action}: must be one of $ACTIONS"
    ACTION=$1
    shift
  fi
  while (($#)); do
    argument=$1
    shift
    key=${argument%%=*}
    key=${key#--}
    case $argument in
      --)
        REST=("$@")
        break
        ;;
      --help)
        sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
      --dry-run) DRY_RUN=true ;;
      --*=*)
        among "$key" "${!OPTION[@]}" || die "--$key: unknown option; see --help"
        ! among "${OPTION[$key]}" true false || among "${argument#*=}" true false ||
          die "$argument: must be true or false"
        OPTION["$key"]=${argument#*=}
        ;;
      --*)
        if ! among "$key" "${!OPTION[@]}" || ! among "${OPTION[$key]}" true false; then
          die "$argument: unknown option, or its value is missing; see --help"
        fi
        OPTION["$key"]=true
        ;;
      *) die "$argument: unexpected; arguments of the training command go after --" ;;
    esac
  done
}

# training_arguments [bucket]: checks REST for contextdiff_jax.main before anything is paid for.
# With "bucket" the workdir must be one, because the hosts share no disk.
training_arguments() {
  local argument config="" workdir=""
  [[ ${OPTION[module]:-contextdiff_jax.main} == contextdiff_jax.main ]] || return 0
  for argument in "${REST[@]}"; do
    case $argument in
      --config=?*) config=${argument#*=} ;;
      --workdir=?*) workdir=${argument#*=} ;;
      --distributed* | --coordinator* | --num_processes* | --process_id*)
        die "$argument: the script sets this itself" ;;
    esac
  done
  [[ -n $config ]] || die "--config=FILE is missing after --, e.g. -- --config=configs/laion.py --workdir=..."
  [[ -n $workdir ]] || die "--workdir=DIR is missing after --"
  [[ -e $ROOT/${config%%:*} || -e ${config%%:*} ]] || die "--config=$config: there is no file ${config%%:*}"
  if [[ ${1:-} == bucket && $workdir != gs://* ]]; then
    die "--workdir=$workdir: must be a bucket (gs://...), as the hosts share no disk"
  fi
}

# train_command PATH: fills TRAIN with the command of one host; PATH is train.sh's path there.
train_command() {
  TRAIN=(bash "$1" --platform=tpu "--module=${OPTION[module]}")
  [[ -z ${OPTION[weights]} ]] || TRAIN+=("--weights=${OPTION[weights]}")
  TRAIN+=(-- "${REST[@]}")
  [[ ${OPTION[module]} != contextdiff_jax.main ]] || TRAIN+=(--distributed=auto)
}

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

# choice OPTION VALUE...: the option must be one of the values.
choice() {
  local value=${OPTION[$1]}
  [[ " ${*:2} " == *" $value "* ]] || die "--$1=$value: must be one of ${*:2}"
}

# whole OPTION...: each of these options must be a whole number.
whole() {
  local key
  for key in "$@"; do
    [[ ${OPTION[$key]} =~ ^[0-9]+$ ]] || die "--$key=${OPTION[$key]}: must be a whole number"
  done
}

# positive OPTION...: each of these options must be a whole number above 0.
positive() {
  local key
  whole "$@"
  for key in "$@"; do
    [[ ${OPTION[$key]} =~ [1-9] ]] || die "--$key=${OPTION[$key]}: must be at least 1"
  done
}

parse() {
  local argument key
  if [[ -n ${ACTIONS:-} && ${1:-} != --help ]]; then
    [[ " $ACTIONS " == *" ${1:-none} "* ]] || die "${1:-no action}: must be one of $ACTIONS"
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
        [[ -v OPTION["$key"] ]] || die "--$key: unknown option; see --help"
        OPTION["$key"]=${argument#*=}
        ;;
      --*)
        [[ ${OPTION["$key"]-} == false ]] ||
          die "$argument: unknown option, or its value is missing; see --help"
        OPTION["$key"]=true
        ;;
      *) die "$argument: unexpected; arguments of the training command go behind --" ;;
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
  [[ -n $config ]] || die "--config=FILE is missing behind --, e.g. -- --config=configs/laion.py --workdir=..."
  [[ -n $workdir ]] || die "--workdir=DIR is missing behind --"
  [[ -e $ROOT/${config%%:*} || -e ${config%%:*} ]] || die "--config=$config: there is no file ${config%%:*}"
  if [[ ${1:-} == bucket && $workdir != gs://* ]]; then
    die "--workdir=$workdir: must be a bucket (gs://...), the hosts share no disk"
  fi
}

# train_command PATH: fills TRAIN with the command of one host; PATH is train.sh's path there.
train_command() {
  TRAIN=(bash "$1" --platform=tpu "--module=${OPTION[module]}")
  [[ -z ${OPTION[weights]} ]] || TRAIN+=("--weights=${OPTION[weights]}")
  TRAIN+=(-- "${REST[@]}")
  [[ ${OPTION[module]} != contextdiff_jax.main ]] || TRAIN+=(--distributed=auto)
}

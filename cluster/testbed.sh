#!/usr/bin/env bash
# A test bed: N boards on one machine, each with an address, a link, a disk and a memory of its own.
#
#   testbed.sh N [OPTIONS] [-- COMMAND...]      start N boards, run COMMAND in board1, remove all, exit as COMMAND did
#   testbed.sh exec BOARD COMMAND...            while it is up: a command in a board
#   testbed.sh link BOARD cut|restore|delay MS|rate RATE|loss PCT|half-open in|half-open out
#   testbed.sh list                             the test beds that are up
#   testbed.sh --clean [BED]                    remove kept ones, and what a killed one left (so does the next start)
#
#   --rate 1gbit      of each link, both directions at once (kbit, mbit, gbit)
#   --delay 0.3ms     one way, between two boards; where their links differ, the longer
#   --loss 0%         of packets, on each link
#   --disk 100M       bytes a second that a board may read from the disk under --disk-of; none: as it is
#   --disk-of .       a file or directory on that disk, such as the model
#   --memory 1500M    of a board, page cache included; none: as much as there is
#   --no-limits       neither: where no cgroups can be made
#   --check           measure what the boards really have first; then COMMAND may be left out
#   --keep            leave the boards up when COMMAND has ended
#
# k, M, G are powers of 1000, KiB, MiB, GiB of 1024. --disk and --memory take a list, one for each board: 1500M,1500M,3G
# (the last counts for the rest). Boards are board1, board2, ... at 10.77.X.1, 10.77.X.2, ...; X, which is free, is the
# name of the bed: HERMES_TESTBED says it to exec and link where several are up. COMMAND finds in HERMES_TESTBED_DIR
# boards.env (name=address) and each board's own HOME and XDG directories. half-open: what goes in to that board, or out
# of it, vanishes. restore: as it was at the start. Needs root and Linux; of the kernel TUN, namespaces and tbf.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
beds=/var/tmp/hermes-testbed # not /run: a HOME in memory would count for its board
cgroups=/sys/fs/cgroup
grace_s=10 # what COMMAND has to end by itself once it was asked to

say() { echo "testbed: $*" >&2; }
die() { say "$1"; exit "${2:-2}"; }
python() { python3 -I "$here/link.py" "$@"; }

# ---- what a bed consists of: all is found by its name, so that what a killed one left is found as well

name_of() { echo "hermes-bed$1-$2"; } # BED BOARD: of its network namespace and its cgroups
cgroups_of() { # BED
  local folder
  for folder in "$cgroups"/{memory/,blkio/,}hermes-bed"$1"-*; do [ ! -d "$folder" ] || echo "$folder"; done
}
namespaces_of() { # BED
  local file
  for file in /run/netns/hermes-bed"$1"-*; do [ ! -e "$file" ] || echo "${file##*/}"; done
}
processes_of() { # BED
  local folder namespace
  for folder in $(cgroups_of "$1"); do cat "$folder/cgroup.procs"; done
  for namespace in $(namespaces_of "$1"); do ip netns pids "$namespace"; done
}
started() { # PID: when, in clock ticks; so that a new process of that number is not taken for the old
  local words
  words=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  words=${words##*) }
  # shellcheck disable=SC2086
  set -- $words
  echo "${20}"
}
is_alive() { # BED: its testbed.sh still runs, or has left it up on purpose
  local pid since
  read -r pid since 2>/dev/null <"$beds/$1/owner" || return 1
  [ "$since" = kept ] || [ "$(started "$pid")" = "$since" ]
}
all_beds() {
  local folder
  for folder in "$beds"/*/; do [ ! -d "$folder" ] || basename "$folder"; done
}

remove() ( # BED. Nothing of it may keep the rest from going
  set +e
  local bed=$1 folder signal left pid device
  for folder in $(cgroups_of "$bed"); do # who waits for a slow disk could not be killed
    read -r device _ 2>/dev/null <"$folder/blkio.throttle.read_bps_device" || continue
    echo "$device 0" >"$folder/blkio.throttle.read_bps_device"
  done
  for signal in TERM KILL; do
    for _ in {1..40}; do
      left=$(processes_of "$bed" 2>/dev/null | sort -u | grep -vx "$$") || break 2
      for pid in $left; do kill -s "$signal" "$pid" 2>/dev/null; done
      [ "$signal" = KILL ] || signal=0 # asked once, then waited for
      sleep 0.05
    done
  done
  pid=$(cat "$beds/$bed/wire.pid" 2>/dev/null) || pid=
  if [ -n "$pid" ] && grep -qsF "$beds/$bed/wire.sock" "/proc/$pid/cmdline"; then kill "$pid"; fi
  for folder in $(namespaces_of "$bed"); do ip netns del "$folder"; done
  for folder in "$beds/$bed"/*/uts; do umount "$folder" 2>/dev/null; done
  for folder in $(cgroups_of "$bed"); do
    for _ in {1..40}; do rmdir "$folder" 2>/dev/null && break || sleep 0.05; done # a zombie is in it until reaped
  done
  rm -rf "${beds:?}/${bed:?}"
)

clean() { # dead: what killed ones have left; all: kept ones too; BED: that one
  local bed
  for bed in $(all_beds); do
    if ! is_alive "$bed" || { [[ $1 =~ ^(all|$bed)$ ]] && grep -q kept "$beds/$bed/owner"; }; then
      say "removing test bed $bed"
      remove "$bed"
    elif [ "$1" = "$bed" ]; then
      die "test bed $bed is in use; end its testbed.sh" 1
    fi
  done
}

# ---- while a bed is up

the_bed() { # the one that is meant
  local up
  if [ -z "${HERMES_TESTBED:-}" ]; then
    up=$(all_beds)
    [ -n "$up" ] || die "no test bed is up; try $0 --help"
    [ "$(wc -w <<<"$up")" = 1 ] || die "several test beds are up; try HERMES_TESTBED=$(tr '\n' '|' <<<"$up")"
    HERMES_TESTBED=$up
  fi
  [ -d "$beds/$HERMES_TESTBED" ] || die "no test bed $HERMES_TESTBED is up; there is: $(all_beds | tr '\n' ' ')"
}
check_board() { # BOARD
  local names
  names=$(sed -n 's/=.*//p' "$beds/$HERMES_TESTBED/boards.env" | tr '\n' ' ')
  [[ " $names" == *" $1 "* ]] || die "no board ${1:-is named}; there are: $names"
}

enter() { # BED BOARD COMMAND...: become that command in that board. Limits first: what it loads counts
  local bed=$1 board=$2 name folder own
  shift 2
  name=$(name_of "$bed" "$board") own=$beds/$bed/$board
  for folder in "$cgroups"/{memory/,blkio/,}"$name"; do
    [ ! -d "$folder" ] || echo "$BASHPID" >"$folder/cgroup.procs"
  done
  # What bash starts in the background ignores SIGINT. No `ip netns exec`: it would hide the cgroups under a new /sys.
  exec nsenter --net="/run/netns/$name" --uts="$own/uts" env --default-signal=INT,QUIT \
    HOME="$own/home" XDG_CONFIG_HOME="$own/config" XDG_CACHE_HOME="$own/cache" XDG_RUNTIME_DIR="$own/run" \
    HERMES_TESTBED="$bed" HERMES_TESTBED_DIR="$beds/$bed" HERMES_TESTBED_BOARD="$board" "$@"
}

shape() { # NAMESPACE BITS: what a board sends. The kernel does it: so TCP sees its queue, and keeps it short
  # Somewhat below the wire's own rate, or packets would queue up there. A burst of a millisecond, which the wire evens
  # out; and if that takes no longer than 10 ms, room for 64 KiB: tbf cuts what is larger, and the wire pays for each.
  local burst=$(($2 / 8 / 1000 * 21 / 20)) least=3200
  [ "$2" -lt 50000000 ] || least=68000
  tc -n "$1" qdisc replace dev eth0 root tbf rate "$(($2 * 98 / 100))" limit 1500000 \
    burst "$((burst > least ? burst : least))"
}

link() { # BOARD WHAT...
  local board=$1 bits
  shift
  case ${1:-} in
    rate) bits=$(python check "${2:-}") ;;
    restore) bits=$(cat "$beds/$HERMES_TESTBED/rate") ;;
  esac
  python tell "$beds/$HERMES_TESTBED/wire.sock" "$board" "$@"
  [ -z "${bits:-}" ] || shape "$(name_of "$HERMES_TESTBED" "$board")" "$bits"
}

list() {
  local bed
  for bed in $(all_beds); do
    echo "$bed $(is_alive "$bed" || echo "left behind ")$(tr '\n' ' ' <"$beds/$bed/boards.env")"
  done
}

# ---- a bed of our own

size() { # TEXT OPTION: in bytes; 0 for none
  [ "$1" != none ] || { echo 0; return; }
  [[ $1 =~ ^([1-9][0-9]{0,11})(|k|M|G|KiB|MiB|GiB)B?$ ]] || die "no size: $2 $1; try 100M, 2GiB or none"
  case ${BASH_REMATCH[2]} in
    k) echo $((BASH_REMATCH[1] * 1000)) ;; M) echo $((BASH_REMATCH[1] * 1000000)) ;;
    G) echo $((BASH_REMATCH[1] * 1000000000)) ;; KiB) echo $((BASH_REMATCH[1] << 10)) ;;
    MiB) echo $((BASH_REMATCH[1] << 20)) ;; GiB) echo $((BASH_REMATCH[1] << 30)) ;; *) echo "${BASH_REMATCH[1]}" ;;
  esac
}
nth() { # LIST K: its K-th, or its last
  local all
  IFS=, read -ra all <<<"$1"
  echo "${all[$(($2 <= ${#all[@]} ? $2 - 1 : ${#all[@]} - 1))]}"
}
disk_under() { # PATH: major:minor of the whole disk; a partition cannot be capped
  local device
  device=$(lsblk -ndo MAJ:MIN "$(df --output=source "$1" 2>/dev/null | tail -1)" 2>/dev/null | tr -d ' ') ||
    die "cannot tell which disk $1 is on; try --disk-of PATH on a disk, or --disk none" 1
  [ ! -e "/sys/dev/block/$device/partition" ] || device=$(cat "/sys/dev/block/$device/../dev")
  echo "$device"
}

claim() { # a free name and number, ours from here on
  mkdir -p -m 700 "$beds"
  [ -O "$beds" ] || die "$beds is not ours; remove it" 1
  exec 8>"$beds.lock"
  flock 8
  clean dead
  local taken
  taken=$(ip -4 route show table all; ip -4 address)
  for bed in {1..254} none; do
    if [ ! -e "$beds/$bed" ] && [[ $taken != *"10.77.$bed."* ]]; then break; fi
  done
  [ "$bed" != none ] || die "254 test beds are up; try $0 --clean" 1
  mkdir "$beds/$bed"
  echo "$$ $(started $$)" >"$beds/$bed/owner"
  exec 8>&-
}

limit() { # BOARD MEMORY DISK: its cgroups, version 1 or 2
  local name m b
  name=$(name_of "$bed" "$1") m=$cgroups/memory/$name b=$cgroups/blkio/$name
  if [ -e "$cgroups/cgroup.controllers" ]; then
    m=$cgroups/$name
    echo "+memory +io" >"$cgroups/cgroup.subtree_control" && mkdir "$m" || return 1
    [ "$2" = 0 ] || { echo "$2" >"$m/memory.max" && echo 0 >"$m/memory.swap.max"; } || return 1
    [ "$3" = 0 ] || echo "$disk rbps=$3" >"$m/io.max" || return 1
    return 0
  fi
  [ "$2" = 0 ] || { mkdir "$m" && echo "$2" >"$m/memory.limit_in_bytes"; } || return 1
  [ "$2" = 0 ] || echo "$2" >"$m/memory.memsw.limit_in_bytes" || true # no swap, where that can be said
  [ "$3" = 0 ] || { mkdir "$b" && echo "$disk $3" >"$b/blkio.throttle.read_bps_device"; } || return 1
}

build() { # all boards and the wire between them
  local k board own namespace links=()
  for ((k = 1; k <= boards; k++)); do
    board=board$k own=$beds/$bed/board$k namespace=$(name_of "$bed" "board$k")
    mkdir -m 700 "$own" "$own"/{home,config,cache,run}
    touch "$own/uts"
    unshare --uts="$own/uts" sh -c "echo $board >/proc/sys/kernel/hostname"
    ip netns add "$namespace"
    links+=("$board=/run/netns/$namespace")
    echo "$board=10.77.$bed.$k" >>"$beds/$bed/boards.env"
    limit "$board" "$(size "$(nth "$memory" $k)" --memory)" "$(size "$(nth "$disk_rate" $k)" --disk)" 2>/dev/null ||
      die "cannot limit memory and disk with cgroups here; try --no-limits, or --memory none or --disk none" 1
  done
  python serve --socket "$beds/$bed/wire.sock" --pid-file "$beds/$bed/wire.pid" --log "$beds/$bed/wire.log" \
    --rate "$rate" --delay "$delay" --loss "$loss" "${links[@]}" || die "no links can be made here" 1
  for ((k = 1; k <= boards; k++)); do
    namespace=$(name_of "$bed" "board$k")
    ip -n "$namespace" -batch - <<<"link set lo up
      address add 10.77.$bed.$k/24 broadcast + dev eth0
      link set eth0 up
      route add 224.0.0.0/4 dev eth0"
    shape "$namespace" "$(cat "$beds/$bed/rate")"
    say "board$k  10.77.$bed.$k  rate $rate  delay $delay  loss $loss" \
      " disk $(nth "$disk_rate" $k)  memory $(nth "$memory" $k)"
  done
}

run() { # COMMAND... in board1; its exit code in `code`
  local pid signal='' waited
  enter "$bed" board1 "$@" <&0 &
  pid=$!
  # At a terminal Ctrl-C has reached it already, and a second one may mean "at once" to it.
  trap 'signal=INT; [ -t 0 ] || kill -s INT $pid 2>/dev/null || true' INT
  trap 'signal=TERM; kill -s TERM $pid 2>/dev/null || true' TERM
  trap 'signal=HUP; kill -s HUP $pid 2>/dev/null || true' HUP
  code=0
  wait "$pid" || code=$?
  [ -n "$signal" ] || return 0
  for ((waited = 0; waited < grace_s * 20; waited++)); do
    kill -0 "$pid" 2>/dev/null || { code=0; wait "$pid" || code=$?; return 0; }
    sleep 0.05
  done
  say "COMMAND has not ended within $grace_s s of SIG$signal"
}

finish() { # whatever happens
  code=$?
  trap '' INT TERM HUP
  if [ -n "$bed" ] && [ "$bed" != none ]; then
    [ ! -s "$beds/$bed/wire.log" ] || { say "the wire has failed:"; cat "$beds/$bed/wire.log" >&2; }
    if [ "$keep" = yes ] && [ "$up" = yes ]; then
      echo "0 kept" >"$beds/$bed/owner.new"
      mv "$beds/$bed/owner.new" "$beds/$bed/owner" # at once: without one it would be a dead one's
      say "test bed $bed stays up; $0 --clean removes it"
    else
      remove "$bed"
    fi
  fi
  exit "$code"
}

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

case ${1:-} in
  '' | -h | --help) usage; exit $(($# ? 0 : 2)) ;;
esac
[ "$(id -u)" = 0 ] || die "needs root, for network namespaces and cgroups; try sudo $0 $*" 1
for tool in ip tc nsenter unshare lsblk flock python3; do
  command -v "$tool" >/dev/null || die "needs $tool, which is not installed" 1
done
case $1 in
  exec) the_bed; check_board "${2:-}"; [ $# -ge 3 ] || die "exec $2 what?"; enter "$HERMES_TESTBED" "${@:2}" ;;
  link) the_bed; check_board "${2:-}"; link "${@:2}"; exit ;;
  list) list; exit ;;
  --clean) mkdir -p -m 700 "$beds"; exec 8>"$beds.lock"; flock 8; clean "${2:-all}"; exit ;;
esac

[[ $1 =~ ^[1-9][0-9]{0,2}$ ]] && [ "$1" -le 64 ] || die "no number of boards from 1 to 64: $1; try $0 --help"
boards=$1 rate=1gbit delay=0.3ms loss=0% disk_rate=100M disk_of=. memory=1500M limits=yes check=no keep=no
bed='' up=no
shift
while [ $# -gt 0 ]; do
  case $1 in
    --no-limits) limits=no ;; # whatever else is said
    --check) check=yes ;;
    --keep) keep=yes ;;
    --) shift; break ;;
    --rate | --delay | --loss | --disk | --disk-of | --memory)
      [ $# -ge 2 ] || die "$1 what? try $0 --help"
      option=${1#--} option=${option/%disk/disk_rate}
      printf -v "${option/-/_}" %s "$2"
      shift ;;
    *) die "no such option: $1; try $0 --help" ;;
  esac
  shift
done
[ $# -gt 0 ] || [ $check = yes ] || [ $keep = yes ] || die "no COMMAND; try $0 $boards -- COMMAND..."
bits=$(python check "$rate" "$delay" "$loss")
for ((k = 1; k <= boards; k++)); do
  size "$(nth "$memory" $k)" --memory >/dev/null
  size "$(nth "$disk_rate" $k)" --disk >/dev/null
done
[ $limits = yes ] || disk_rate=none memory=none
disk=none
[ "$disk_rate" = none ] || disk=$(disk_under "$disk_of")

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
claim
echo "$bits" >"$beds/$bed/rate"
build
up=yes
if [ $check = yes ]; then
  # shellcheck source=cluster/check.sh
  . "$here/check.sh"
fi
code=0
[ $# -eq 0 ] || run "$@"
exit "$code"

# What the boards of a test bed really have, beside what was asked for: sourced by testbed.sh --check, with its names.
# shellcheck shell=bash disable=SC2154

python=$(python3 -c 'import sys; print(sys.executable)') # one found by way of HOME is not found in a board

in_board() { (enter "$bed" "$@"); } # BOARD COMMAND...
wire_ticks() { awk '{print $14 + $15}' "/proc/$(cat "$beds/$bed/wire.pid")/stat"; }
share_of() { # TICKS MILLISECONDS: percent of a core
  awk -v ticks="$1" -v ms="$2" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.1f", 100 * ticks / hz / (ms / 1000) }'
}

check_disk() { # BOARD FILE: MB/s, or what is in the way
  [ -n "$2" ] || { echo "another disk"; return; }
  in_board "$1" "$python" "$here/measure.py" disk "$2" 2>/dev/null || echo "no O_DIRECT"
}

check() {
  local k board file='' server ready found goodput trip row='%-10s%-26s%-26s%s\n'
  if [ "$disk" = none ] || [ "$(disk_under "$beds" 2>/dev/null)" = "$disk" ]; then
    file=$beds/$bed/check
    head -c 64000000 /dev/urandom >"$file"
    sync "$file"
  fi
  # shellcheck disable=SC2059
  printf "$row" board "goodput asked/measured" "round trip asked/measured" "disk asked/measured"
  for ((k = 1; k <= boards; k++)); do
    board=board$k goodput=- trip=-
    if [ $k -gt 1 ]; then
      exec {ready}< <(enter "$bed" "$board" "$python" "$here/measure.py" serve)
      server=$!
      read -r -u "$ready" || die "$board cannot be measured" 1
      found=$(in_board board1 "$python" "$here/measure.py" link "10.77.$bed.$k") || die "$board is silent" 1
      read -r goodput trip <<<"$found"
      goodput="$rate / $goodput MB/s" trip="2 x $delay / $trip ms"
      kill "$server"
      exec {ready}<&-
    fi
    # shellcheck disable=SC2059
    printf "$row" "$board" "$goodput" "$trip" "$(nth "$disk_rate" $k) / $(check_disk "$board" "$file") MB/s"
  done
  rm -f "$file"
  check_wire
}

check_wire() { # how much of the machine it takes from the boards
  local server ready ticks began rest busy=-
  if [ "$boards" -gt 1 ]; then
    exec {ready}< <(enter "$bed" board2 "$python" "$here/measure.py" serve)
    server=$!
    read -r -u "$ready"
    in_board board1 "$python" "$here/measure.py" stream "10.77.$bed.2" >/dev/null &
    sleep 0.5 # until it flows
    ticks=$(wire_ticks) began=$(date +%s%3N)
    sleep 1
    busy=$(share_of $(($(wire_ticks) - ticks)) $(($(date +%s%3N) - began)))
    wait $!
    kill "$server"
    exec {ready}<&-
  fi
  ticks=$(wire_ticks) began=$(date +%s%3N)
  sleep 1
  rest=$(share_of $(($(wire_ticks) - ticks)) $(($(date +%s%3N) - began)))
  echo "the wire takes $busy % of a core at that rate, $rest % at rest"
}

check >&2

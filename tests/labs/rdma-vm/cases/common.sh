# What the cases share: a job of two ranks started by hand, one on each guest, saved by node 0, ended everywhere and restarted.
# STILLPOINT names the program, ROUNDS how long the case runs.
set -u
# /shared takes no sockets.
export STILLPOINT_LOCAL_BASE=/run/case/local
mkdir -p $STILLPOINT_LOCAL_BASE
store=/shared/store job=case
say() { echo "$(hostname): $*" >&2; }
fail() { say "$*"; cat /run/case/rank.out /run/case/rank.err >&2; cat "$store"/*/agent.log 2>/dev/null | tail -n 40 >&2; rvm-rsh -stop; exit 1; }
stillpoint() { "$STILLPOINT" --dir "$store" "$@"; }

# begin RANK CMD...: a rank of the first start; `again RANK`: of the next one
# (by pipes: a file would be saved, which the other guest does not have)
begin() { local rank=$1; shift; stillpoint exec --job $job --np 2 --rank "$rank" -- "$@" > >(cat >> /run/case/rank.out) 2> >(cat >> /run/case/rank.err) & }
again() { stillpoint exec --job $job --np 2 --restart --rank "$1" > >(cat >> /run/case/rank.out) 2> >(cat >> /run/case/rank.err) & }

# the rank has not ended
lives() { kill -0 $! 2> /dev/null || { wait $!; fail "the rank has ended with $?"; }; }

# wait_for SECONDS CMD...: until that succeeds
wait_for() {
    local end=$((SECONDS + $1)); shift
    until "$@"; do
        lives
        [ $SECONDS -lt $end ] || fail "after all this time not yet: $*"
        sleep 0.2
    done
}

# save NAME: node 0 has a checkpoint taken, and tries until there is one; the other waits
save() {
    if [ "$RVM_NODE" = 0 ]; then
        local end=$((SECONDS + 150)) said=
        until stillpoint checkpoint $job > /run/case/asked 2>&1; do
            lives
            [ "$(cat /run/case/asked)" = "$said" ] || { said=$(cat /run/case/asked); say "not yet: $said"; }
            [ $SECONDS -lt $end ] || fail "no checkpoint"
            sleep 0.5
        done
        say "checkpoint $(cat /run/case/asked)"
    fi
    rvm-barrier "$1" 300 || fail "the other guest has given up"
}

# end_all: SIGKILL for the rank here and the agent
end_all() { rvm-kill stillpoint-rank stillpoint-agent; wait 2> /dev/null; }

# finish: the rank ends well
finish() {
    local rc=0; wait $! || rc=$?
    sleep 0.5
    cat /run/case/rank.out; cat /run/case/rank.err >&2
    return $rc
}

#!/bin/bash
# An MPI program whose library talks by UCX over reliable connections of the verbs: saved, ended everywhere, and restarted where the
# devices have other addresses and queue pair numbers. All of verbs is below and made anew.
. "$(dirname "$0")/common.sh"
[ "$RVM_NODE" = 0 ] || exec rvm-rsh -serve
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
# Without it UCX drops all UD packets on rxe, which reliable connections need to begin.
export UCX_UD_VERBS_ETH_DGID_CHECK=n UCX_TLS=self,rc_verbs,ud_verbs:aux UCX_NET_DEVICES=rxe0:1 UCX_IB_GID_INDEX=1
launcher="mpirun --bind-to none --mca pml ucx --mca btl ^openib --oversubscribe --mca plm_rsh_agent rvm-rsh -H node0,node1"
launcher+=" --mca oob_tcp_if_include eth0 -x UCX_TLS -x UCX_NET_DEVICES -x UCX_IB_GID_INDEX -x UCX_UD_VERBS_ETH_DGID_CHECK"
for life in first second; do
    if [ $life = first ]; then
        stillpoint run -n 2 --launcher "$launcher" -- "$PROGRAM" "$ROUNDS" 1 > /run/case/rank.out 2> /run/case/rank.err &
    else
        stillpoint restart "$job" > /run/case/rank.out 2> /run/case/rank.err &
    fi
    run=$! end=$((SECONDS + 240))
    job=$(ls "$store" 2> /dev/null | head -n 1)
    until [ -n "$job" ] && stillpoint checkpoint "$job" > /run/case/asked 2>&1; do
        kill -0 $run 2> /dev/null || { wait $run; fail "the job has ended with $?"; }
        [ $SECONDS -lt $end ] || { cat /run/case/asked /run/case/rank.err >&2; fail "no checkpoint"; }
        sleep 1
        job=$(ls "$store" 2> /dev/null | head -n 1)
    done
    say "checkpoint $(cat /run/case/asked)"
    [ $life = first ] || break
    kill -KILL $run; wait $run 2> /dev/null
    ends="rvm-kill stillpoint orterun orted stillpoint-rank stillpoint-agent"
    $ends
    rvm-rsh node1 "$ends"
    rvm-rsh node1 rvm-device 12 9 || fail "node1 has no other device"
    rvm-device 11 5 || fail "no other device"
done
rc=0; wait $run || rc=$?
cat /run/case/rank.out; cat /run/case/rank.err >&2
rvm-rsh -stop
exit $rc

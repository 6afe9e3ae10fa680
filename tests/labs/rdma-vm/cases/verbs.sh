#!/bin/bash
# The two ends of WORDS, a program that has its server's name for its last word (rping: behind -c -a): saved, ended, restarted on the other guest each, on
# devices with other addresses and queue pair numbers, saved, ended, and restarted where they were, again on others.
. "$(dirname "$0")/common.sh"
read -r -a words <<< "$WORDS"
# Port 18515, or one of librdmacm's.
listens() { grep -q ':4853 ' /proc/net/tcp /proc/net/tcp6 || rdma resource show cm_id | grep -q ' state LISTEN '; }
if [ "$RVM_NODE" = 1 ]; then
    # A client by librdmacm that is refused, because nobody listens yet, is no case of ours (perftest's ends by SIGSEGV).
    rvm-barrier listens 120 || fail "the other guest has given up"
    case ${words[0]} in
        rping) words+=(-c -a node0);;
        *) words+=(node0);;
    esac
else
    case ${words[0]} in rping) words+=(-s);; esac
fi
packets() { cat /sys/class/infiniband/rxe0/ports/1/hw_counters/rcvd_pkts; }
came=$(packets)
begin "$RVM_NODE" "${words[@]}"
if [ "$RVM_NODE" = 0 ]; then
    wait_for 100 listens
    rvm-barrier listens
    # Until they have found each other: who is still connecting looks for the other end where that was. It takes a few packets.
    some() { [ "$(packets)" -gt $((came + 100)) ]; }
    wait_for 100 some
fi
save first
end_all
rvm-barrier ended-first
rvm-device $((11 + RVM_NODE)) $((5 + 4 * RVM_NODE)) || fail "no other device"
rvm-barrier device-first
again $((1 - RVM_NODE))
save second
end_all
rvm-barrier ended-second
rvm-device $((21 + RVM_NODE)) $((3 + 5 * RVM_NODE)) || fail "no other device"
rvm-barrier device-second
again "$RVM_NODE"
finish

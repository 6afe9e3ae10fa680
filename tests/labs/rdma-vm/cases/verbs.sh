#!/bin/bash
# The two ends of WORDS, a program that has its server's name for its last word (rping: behind -c -a): saved, ended, restarted on the other guest each, on
# devices with other addresses and queue pair numbers, saved, ended, and restarted where they were, again on others.
. "$(dirname "$0")/common.sh"
read -r -a words <<< "$WORDS"
if [ "$RVM_NODE" = 1 ]; then
    # A client by librdmacm that is refused, because nobody listens yet, is no case of ours (perftest's ends by SIGSEGV).
    until [ -e /shared/listens ]; do sleep 0.2; done
    sleep 2
    case ${words[0]} in
        rping) words+=(-c -a node0);;
        *) words+=(node0);;
    esac
else
    case ${words[0]} in rping) words+=(-s);; esac
    (sleep 2; : > /shared/listens) &
fi
begin "$RVM_NODE" "${words[@]}"
# Until they have found each other: who is still connecting looks for the other end where that was. Node 0 says when.
[ "$RVM_NODE" = 1 ] || sleep 7
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

#!/bin/bash
# Two programs that talk over TCP, one on each guest: saved, ended, restarted on the other guest each, saved, ended, and
# restarted where they were.
. "$(dirname "$0")/common.sh"
roles=(listen connect)
export ADDRESS=$RVM_IP
begin "$RVM_NODE" "$STREAM" "$ROUNDS" 1 "${roles[RVM_NODE]}" /shared/port
save first
end_all
rvm-barrier ended-first
again $((1 - RVM_NODE))
save second
end_all
rvm-barrier ended-second
again "$RVM_NODE"
finish

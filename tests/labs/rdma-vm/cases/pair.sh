#!/bin/bash
# The two ends of PROGRAM, `PROGRAM ROUNDS SEED listen|connect FILE`: saved, ended, restarted on the other guest each, on devices with other
# addresses and queue pair numbers, saved, ended, and restarted where they were, again on others.
. "$(dirname "$0")/common.sh"
roles=(listen connect)
export ADDRESS=$RVM_IP
begin "$RVM_NODE" "$PROGRAM" "$ROUNDS" "$SEED" "${roles[RVM_NODE]}" /shared/port
for life in 1 2; do
    sleep "$PAUSE"
    save saved-$life
    end_all
    rvm-barrier ended-$life
    rvm-device $((10 * life + RVM_NODE)) $((5 + 4 * RVM_NODE)) || fail "no other device"
    rvm-barrier device-$life
    again $(((RVM_NODE + life) % 2))
done
finish

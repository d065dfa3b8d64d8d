#!/bin/sh
# Gives this node its role when a CARP address comes or goes; devd(8) starts it.
# What is mounted where is the last thing to adapt: "resource mount-point" pairs.

disks="shared /mnt/shared"
patience=60

say()
{
	logger -p local0.notice -t carp-hast "$*"
}

# Waits for a condition, a second at a time.
await()
{
	left=$patience
	until eval "$1"; do
		left=$((left - 1))
		[ "$left" -gt 0 ] || return 1
		sleep 1
	done
}

no_secondary()
{
	# shellcheck disable=SC2317 # await calls it
	! pgrep -f "hastd: $resource \(secondary\)" >/dev/null
}

become_primary()
{
	# Everything that the other node had acknowledged is stored once the worker has ended.
	if ! await "no_secondary"; then
		say "a secondary of $resource is still at work after ${patience}s"
		return 1
	fi
	if ! hastctl role primary "$resource"; then
		say "$resource does not become primary"
		return 1
	fi
	await "test -c /dev/hast/$resource" || return 1
	say "$resource is primary"
	fsck -p -y -t ufs "/dev/hast/$resource" && mount "/dev/hast/$resource" "$directory"
}

become_secondary()
{
	if mount | grep -q "^/dev/hast/$resource on "; then
		umount -f "$directory" || return 1
	fi
	hastctl role secondary "$resource" && say "$resource is secondary"
}

case "$1" in
primary | secondary) ;;
*)
	echo "usage: $0 primary | secondary" >&2
	exit 64
	;;
esac

failed=0
# shellcheck disable=SC2086 # the pairs are words
set -- "$1" $disks
role=$1
shift
while [ $# -ge 2 ]; do
	resource=$1
	directory=$2
	shift 2
	case "$role" in
	primary) become_primary ;;
	*) become_secondary ;;
	esac || failed=1
done
exit $failed

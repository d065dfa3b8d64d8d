#!/usr/libexec/atf-sh
# shellcheck shell=sh disable=SC3043 # FreeBSD's sh has local
# hastd and hastctl on FreeBSD: two nodes on this machine, connected over the loopback interface.
#
#   kyua test -k tests/freebsd/Kyuafile
#
# Which programs, so that either node may be the original's:
#
#   kyua -v test_suites.hast.hastd_a=/sbin/hastd -v test_suites.hast.hastctl_a=/sbin/hastctl test ...
#
# hastd_a, hastctl_a, hastd_b, hastctl_b; all of them /usr/local/sbin's unless given. As root. GEOM Gate, md(4)
# and trim(8) are used where a test needs them. "gate" set to "no" leaves those tests out.

PORT_A=18457
PORT_B=18458
RESOURCE=hasttest

# The programs of a node.
hastd_of()
{
	atf_config_get "hastd_$1" /usr/local/sbin/hastd
}

hastctl_of()
{
	atf_config_get "hastctl_$1" /usr/local/sbin/hastctl
}

# ctl NODE COMMAND [ARGUMENT ...]: hastctl with the node's configuration.
ctl()
{
	local node command
	node=$1
	command=$2
	shift 2
	"$(hastctl_of "$node")" "$command" -c "$PWD/$node.conf" "$@"
}

# configure NODE OWN-PORT OTHER-PORT DISK
configure()
{
	local name
	name=$(hostname)
	cat >"$1.conf" <<EOF
control uds://$PWD/$1.ctl
pidfile $PWD/$1.pid
listen tcp4://127.0.0.1:$2
timeout 5
exec $PWD/hook-$1
resource $RESOURCE {
	on ${name%%.*} {
		local $4
		remote tcp4://127.0.0.1:$3
	}
}
EOF
	printf '#!/bin/sh\necho "$@" >>%s/events-%s\n' "$PWD" "$1" >"hook-$1"
	chmod +x "hook-$1"
	: >"events-$1"
}

# Waits for a command to succeed: await SECONDS COMMAND ...
await()
{
	local left
	left=$(($1 * 4))
	shift
	until "$@" >/dev/null 2>&1; do
		left=$((left - 1))
		if [ "$left" -le 0 ]; then
			echo "waited in vain for: $*" >&2
			return 1
		fi
		sleep 0.25
	done
}

start()
{
	atf_check -s exit:0 -o ignore -e ignore "$(hastd_of "$1")" -c "$PWD/$1.conf" -P "$PWD/$1.pid"
	await 10 ctl "$1" status || atf_fail "hastd of node $1 does not answer"
}

# Ends a node in order, whichever kind of hastd it is.
stop()
{
	local pid
	[ -s "$1.pid" ] || return 0
	pid=$(cat "$1.pid")
	ctl "$1" role init all >/dev/null 2>&1
	kill "$pid" 2>/dev/null
	await 20 gone "$pid"
}

gone()
{
	! kill -0 "$1" 2>/dev/null
}

# Ends a node as a loss of power would, without the loss of what the disk has not stored yet.
crash()
{
	local workers
	workers=$(pgrep -P "$(cat "$1.pid")")
	# shellcheck disable=SC2086 # one process each
	kill -9 "$(cat "$1.pid")" $workers
	await 10 gone "$(cat "$1.pid")"
	# Its device is left behind; the next primary of this machine takes it over.
	rm -f "$1.pid" "$1.ctl"
}

role()
{
	atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of "$1")" role -c "$PWD/$1.conf" "$2" "$RESOURCE"
}

status_is()
{
	[ "$(ctl "$1" list "$RESOURCE" | awk '$1 == "status:" { print $2 }')" = "$2" ]
}

# Whether a node has told its hook of an event.
heard()
{
	grep -q "^$2 $RESOURCE" "events-$1"
}

worker_of()
{
	pgrep -f "^hastd: $RESOURCE \($1\)"
}

no_worker()
{
	! worker_of "$1" >/dev/null
}

# Two nodes on two memory disks, a the primary, in step.
pair()
{
	[ "$(atf_config_get gate yes)" = yes ] || atf_skip "GEOM Gate is not to be used"
	kldstat -q -m g_gate || kldload geom_gate || atf_skip "there is no GEOM Gate"
	[ ! -c "/dev/hast/$RESOURCE" ] || atf_fail "/dev/hast/$RESOURCE is there already"
	MD_A=$(mdconfig -a -t swap -s 64m) || atf_fail "no memory disk"
	echo "$MD_A" >>disks
	MD_B=$(mdconfig -a -t swap -s 64m) || atf_fail "no memory disk"
	echo "$MD_B" >>disks
	configure a "$PORT_A" "$PORT_B" "/dev/$MD_A"
	configure b "$PORT_B" "$PORT_A" "/dev/$MD_B"
	for node in a b; do
		atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of $node)" create -c "$PWD/$node.conf" "$RESOURCE"
		start $node
	done
	role b secondary
	role a primary
	await 10 test -c "/dev/hast/$RESOURCE" || atf_fail "the device does not appear"
	await 20 status_is a complete || atf_fail "the nodes do not connect"
}

# What an ended test left: the disks and daemons of one that failed, too.
clean()
{
	umount -f "$PWD/mnt" 2>/dev/null
	for node in a b; do
		[ ! -s "$node.pid" ] || stop "$node"
	done
	[ -f disks ] || return 0
	while read -r md; do
		mdconfig -d -u "$md" -o force
	done <disks
}

# change_over FROM TO: the planned change of roles.
change_over()
{
	role "$1" secondary
	await 20 no_worker secondary || atf_fail "a secondary's worker is still there"
	role "$2" primary
	await 10 test -c "/dev/hast/$RESOURCE" || atf_fail "the device does not appear on node $2"
}

sum()
{
	sha256 -q "$1"
}

atf_test_case start_status_stop cleanup
start_status_stop_head()
{
	atf_set descr "The daemon starts, answers, refuses a second one, and is stopped by hastctl"
	atf_set require.user root
}
start_status_stop_body()
{
	truncate -s 16m "$PWD/disk.img"
	configure a "$PORT_A" "$PORT_B" "$PWD/disk.img"
	atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of a)" create -c "$PWD/a.conf" "$RESOURCE"
	start a
	atf_check -s exit:0 -o match:"^$RESOURCE.*init" -e ignore "$(hastctl_of a)" status -c "$PWD/a.conf"
	atf_check -s exit:75 -o ignore -e ignore "$(hastd_of a)" -c "$PWD/a.conf" -P "$PWD/a.pid"
	role a secondary
	atf_check -s exit:0 -o match:"role: secondary" "$(hastctl_of a)" list -c "$PWD/a.conf" "$RESOURCE"
	pid=$(cat a.pid)
	atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of a)" stop -c "$PWD/a.conf"
	await 20 gone "$pid" || atf_fail "hastd goes on after hastctl stop"
}
start_status_stop_cleanup()
{
	clean
}

atf_test_case file_system cleanup
file_system_head()
{
	atf_set descr "A file system on the device is the same after a planned change of roles"
	atf_set require.user root
	atf_set require.progs "newfs mdconfig"
}
file_system_body()
{
	pair
	mkdir mnt
	atf_check -s exit:0 -o ignore newfs -U "/dev/hast/$RESOURCE"
	atf_check -s exit:0 mount "/dev/hast/$RESOURCE" "$PWD/mnt"
	atf_check -s exit:0 -e ignore dd if=/dev/random of=mnt/data bs=1m count=16
	before=$(sum mnt/data)
	atf_check -s exit:0 umount "$PWD/mnt"
	change_over a b
	atf_check -s exit:0 -o ignore fsck_ffs -n "/dev/hast/$RESOURCE"
	atf_check -s exit:0 mount "/dev/hast/$RESOURCE" "$PWD/mnt"
	atf_check_equal "$before" "$(sum mnt/data)"
	atf_check -s exit:0 umount "$PWD/mnt"
}
file_system_cleanup()
{
	clean
}

atf_test_case failover cleanup
failover_head()
{
	atf_set descr "What was acknowledged is on the other node when the primary dies, and comes back"
	atf_set require.user root
}
failover_body()
{
	pair
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=1m count=8
	atf_check -s exit:0 -e ignore dd if=data of="/dev/hast/$RESOURCE" bs=1m
	crash a
	await 30 no_worker secondary || atf_fail "the secondary's worker does not notice"
	role b primary
	await 10 test -c "/dev/hast/$RESOURCE" || atf_fail "the device does not appear on node b"
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=8
	atf_check_equal "$(sum data)" "$(sum copy)"

	# The first node comes back and is brought up to date.
	atf_check -s exit:0 -e ignore dd if=/dev/random of=newer bs=1m count=4
	atf_check -s exit:0 -e ignore dd if=newer of="/dev/hast/$RESOURCE" bs=1m oseek=4
	start a
	role a secondary
	await 40 status_is b complete || atf_fail "the nodes do not connect"
	await 60 heard b syncdone || atf_fail "the nodes are not synchronised"
	change_over b a
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=4
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy2 bs=1m iseek=4 count=4
	atf_check_equal "$(dd if=data bs=1m count=4 2>/dev/null | sha256)" "$(sha256 <copy)"
	atf_check_equal "$(sum newer)" "$(sum copy2)"
}
failover_cleanup()
{
	clean
}

atf_test_case trim cleanup
trim_head()
{
	atf_set descr "What is beside a trimmed range survives on both nodes"
	atf_set require.user root
	atf_set require.progs "trim"
}
trim_body()
{
	pair
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=1m count=12
	atf_check -s exit:0 -e ignore dd if=data of="/dev/hast/$RESOURCE" bs=1m
	atf_check -s exit:0 -o ignore -e ignore trim -f -o 4m -l 4m "/dev/hast/$RESOURCE"
	for round in a b; do
		atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=first bs=1m count=4
		atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=last bs=1m iseek=8 count=4
		atf_check_equal "$(dd if=data bs=1m count=4 2>/dev/null | sha256)" "$(sha256 <first)"
		atf_check_equal "$(dd if=data bs=1m iseek=8 count=4 2>/dev/null | sha256)" "$(sha256 <last)"
		[ "$round" = b ] || change_over a b
	done
}
trim_cleanup()
{
	clean
}

atf_test_case worker_killed cleanup
worker_killed_head()
{
	atf_set descr "The device outlives its worker, and whoever uses it only waits"
	atf_set require.user root
}
worker_killed_body()
{
	pair
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=1m count=32
	dd if=data of="/dev/hast/$RESOURCE" bs=64k 2>/dev/null &
	writer=$!
	for _ in 1 2 3; do
		await 20 worker_of primary || atf_fail "there is no worker"
		killed=$(worker_of primary)
		kill -9 "$killed"
		test -c "/dev/hast/$RESOURCE" || atf_fail "the device went with its worker"
		await 20 gone "$killed"
		sleep 0.5
	done
	wait "$writer" || atf_fail "the writer saw an error"
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=32
	atf_check_equal "$(sum data)" "$(sum copy)"
	await 40 status_is a complete || atf_fail "the nodes do not connect again"
	await 60 heard a syncdone || atf_fail "the nodes are not synchronised"
	change_over a b
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=32
	atf_check_equal "$(sum data)" "$(sum copy)"
}
worker_killed_cleanup()
{
	clean
}

atf_test_case split_brain cleanup
split_brain_head()
{
	atf_set descr "Nodes that were both written alone do not connect, and one is made anew"
	atf_set require.user root
}
split_brain_body()
{
	pair
	atf_check -s exit:0 -e ignore dd if=/dev/random of="/dev/hast/$RESOURCE" bs=1m count=1
	change_over a b
	await 20 status_is b complete || atf_fail "the nodes do not connect"
	role b init
	role a init
	# Each alone, one after the other: there is one device of that name on this machine.
	for node in a b; do
		role $node primary
		await 10 test -c "/dev/hast/$RESOURCE" || atf_fail "no device on node $node"
		atf_check -s exit:0 -e ignore dd if=/dev/random of="/dev/hast/$RESOURCE" bs=64k count=2
		[ $node = b ] || role $node init
	done
	role a secondary
	await 40 heard b split-brain || atf_fail "node b notices nothing"
	await 10 heard a split-brain || atf_fail "node a notices nothing"

	role a init
	atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of a)" create -c "$PWD/a.conf" "$RESOURCE"
	: >events-b
	role a secondary
	await 60 heard b syncdone || atf_fail "the nodes are not synchronised"
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=before bs=1m count=1
	change_over b a
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=after bs=1m count=1
	atf_check_equal "$(sum before)" "$(sum after)"
}
split_brain_cleanup()
{
	clean
}

atf_test_case privileges cleanup
privileges_head()
{
	atf_set descr "A worker runs as user hast, and in capability mode where the kernel has one"
	atf_set require.user root
}
privileges_body()
{
	id hast >/dev/null 2>&1 || atf_skip "there is no user hast"
	pair
	for role in primary secondary; do
		await 20 worker_of $role || atf_fail "there is no $role"
		worker=$(worker_of $role)
		atf_check_equal hast "$(ps -o user= -p "$worker" | tr -d ' ')"
		if [ "$(sysctl -n kern.features.security_capability_mode 2>/dev/null)" = 1 ]; then
			flags=$(procstat cred "$worker" | awk 'NR == 2 { print $10 }')
			atf_check_equal C "$flags"
		fi
	done
}
privileges_cleanup()
{
	clean
}

atf_init_test_cases()
{
	atf_add_test_case start_status_stop
	atf_add_test_case file_system
	atf_add_test_case failover
	atf_add_test_case trim
	atf_add_test_case worker_killed
	atf_add_test_case split_brain
	atf_add_test_case privileges
}

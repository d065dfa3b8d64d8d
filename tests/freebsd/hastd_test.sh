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
# hastd_a, hastctl_a, hastd_b, hastctl_b; all of them /usr/local/sbin's unless given. As root. GEOM Gate, md(4),
# gnop(8) and trim(8) are used where a test needs them. "gate" set to "no" leaves those tests out. "disk" names a
# disk, such as /dev/da1, for the first node in the test of the kinds of disks. WHAT IS ON IT IS LOST.

PORT_A=18457
PORT_B=18458
RESOURCE=hasttest
# What a test may set before it makes its nodes: where both listen, statements for the top of hast.conf, and
# how large the disks are.
ADDRESS=tcp4://127.0.0.1
STATEMENTS=
SIZE=40m

# The programs of a node.
hastd_of()
{
	atf_config_get "hastd_$1" /usr/local/sbin/hastd
}

hastctl_of()
{
	atf_config_get "hastctl_$1" /usr/local/sbin/hastctl
}

# Whether a node is the original's: its hastctl does not know what ours has besides.
original()
{
	! "$(hastctl_of "$1")" 2>&1 | grep -q compare
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
listen $ADDRESS:$2
timeout 5
exec $PWD/hook-$1
$STATEMENTS
resource $RESOURCE {
	on ${name%%.*} {
		local $4
		remote $ADDRESS:$3
	}
}
EOF
	printf '#!/bin/sh\necho "$@" >>%s\necho $$ "$@" >>%s\n' "$PWD/events-$1" "$PWD/hooks-$1" >"hook-$1"
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

# What a node has counted: count_of NODE deletes
count_of()
{
	ctl "$1" list "$RESOURCE" | awk -v what="$2:" '$1 == what { print $2 }'
}

# The primary, connected, has nothing left to copy, and nothing under way.
in_step()
{
	status_is "$1" complete && [ "$(count_of "$1" dirty)" = 0 ]
}

# Whether the device is there and served. One that an ended node has left behind is not; the next primary of this
# machine takes it over or makes it anew.
readable()
{
	dd if="/dev/hast/$RESOURCE" of=/dev/null bs=4k count=1
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

# memory_disk OPTION ...: a new memory disk, which is removed at the end.
memory_disk()
{
	local md
	md=$(mdconfig -a "$@") || return 1
	echo "$md" >>disks
	echo "/dev/$md"
}

gate()
{
	[ "$(atf_config_get gate yes)" = yes ] || atf_skip "GEOM Gate is not to be used"
	kldstat -q -m g_gate || kldload geom_gate || atf_skip "there is no GEOM Gate"
	[ ! -c "/dev/hast/$RESOURCE" ] || atf_fail "/dev/hast/$RESOURCE is there already"
}

# Two nodes on two memory disks, a the primary, in step.
pair()
{
	local disk_a disk_b
	gate
	disk_a=$(memory_disk -t swap -s "$SIZE") || atf_fail "no memory disk"
	disk_b=$(memory_disk -t swap -s "$SIZE") || atf_fail "no memory disk"
	pair_on "$disk_a" "$disk_b"
}

# The same on these disks.
pair_on()
{
	local node
	DISK_A=$1
	DISK_B=$2
	configure a "$PORT_A" "$PORT_B" "$DISK_A"
	configure b "$PORT_B" "$PORT_A" "$DISK_B"
	for node in a b; do
		atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of $node)" create -c "$PWD/$node.conf" "$RESOURCE"
		start $node
	done
	role b secondary
	role a primary
	await 30 readable || atf_fail "the device does not appear"
	await 20 status_is a complete || atf_fail "the nodes do not connect"
}

# What an ended test left: the disks and daemons of one that failed, too.
clean()
{
	local node md nop
	umount -f "$PWD/mnt" 2>/dev/null
	touch enough
	for node in a b; do
		[ ! -s "$node.pid" ] || stop "$node"
	done
	if [ -c "/dev/hast/$RESOURCE" ] && [ -f a.conf ]; then
		# Nobody serves it any more: it goes with its next primary.
		"$(hastd_of a)" -c "$PWD/a.conf" -P "$PWD/a.pid"
		await 10 ctl a role primary "$RESOURCE"
		stop a
	fi
	if [ -f nops ]; then
		while read -r nop; do
			gnop destroy -f "$nop"
		done <nops
		rm nops
	fi
	[ -f disks ] || return 0
	while read -r md; do
		mdconfig -d -u "$md" -o force
	done <disks
	rm disks
}

# The data of a node, which does not use its disk, as they are there: data_on NODE DISK
data_on()
{
	local start
	start=$(ctl "$1" dump "$RESOURCE" | awk '$1 == "localoff:" { print $2 }')
	(dd bs="$start" count=1 of=/dev/null && dd bs=1m) <"$2" 2>/dev/null
}

# Whether both disks have the same data. Both roles are init then.
check_disks()
{
	local data
	role a init
	role b init
	data=$(data_on a "$DISK_A" | sha256)
	atf_check_equal "$data" "$(data_on b "$DISK_B" | sha256)"
}

# Something that compresses well, zeros, and something that does not compress: varied FILE MEGABYTES-OF-EACH
varied()
{
	jot -b "two nodes" 1000000 2>/dev/null | dd of="$1" bs=1m count="$2" iflag=fullblock 2>/dev/null
	dd if=/dev/zero of="$1" bs=1m count="$2" oseek="$2" conv=notrunc 2>/dev/null
	dd if=/dev/random of="$1" bs=1m count="$2" oseek="$(($2 * 2))" conv=notrunc 2>/dev/null
	[ "$(stat -f %z "$1")" = "$(($2 * 3 * 1048576))" ] || atf_fail "$1 is not what it should be"
}

# change_over FROM TO: the planned change of roles.
change_over()
{
	role "$1" secondary
	await 20 no_worker secondary || atf_fail "a secondary's worker is still there"
	role "$2" primary
	await 30 readable || atf_fail "the device does not appear on node $2"
}

# Four megabytes of a file: part_of FILE MEGABYTES-BEFORE-IT
part_of()
{
	dd if="$1" bs=1m iseek="$2" count=4 2>/dev/null | sha256
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
	if original a; then
		# Not all originals have hastctl stop.
		kill "$pid"
	else
		atf_check -s exit:0 -o ignore -e ignore "$(hastctl_of a)" stop -c "$PWD/a.conf"
	fi
	await 20 gone "$pid" || atf_fail "hastd does not end"
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
	await 30 readable || atf_fail "the device does not appear on node b"
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
	atf_set descr "A trimmed range is freed on both nodes or on neither, and what is beside it survives"
	atf_set require.user root
	atf_set require.progs "trim"
}
trim_body()
{
	pair
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=1m count=12
	atf_check -s exit:0 -e ignore dd if=data of="/dev/hast/$RESOURCE" bs=1m
	# Our nodes free a range only if it reads as zeros from then on, which no memory disk promises.
	if trim -f -o 4m -l 4m "/dev/hast/$RESOURCE" >trim.out 2>&1; then
		freed=yes
	else
		freed=no
		atf_check -s exit:0 -o ignore grep -i "not supported" trim.out
	fi
	echo "freed: $freed"
	original a || atf_check_equal no "$freed"
	[ "$(count_of a deletes)" -gt 0 ] || atf_fail "the delete has not come to the daemon"
	for round in a b; do
		atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=12
		for part in 0 4 8; do
			[ $part != 4 ] || [ $freed = no ] || continue
			atf_check_equal "$(part_of data $part)" "$(part_of copy $part)"
		done
		echo "the range itself: $(part_of copy 4)"
		[ "$round" = b ] || change_over a b
	done
	# An original frees what its own disk can, whether the other node does or not, and forgets it.
	if [ $freed = no ] || ! original a; then
		await 60 in_step b || atf_fail "the nodes are not in step"
		check_disks
	fi
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

atf_test_case daemon_killed cleanup
daemon_killed_head()
{
	atf_set descr "The device outlives its daemon: the next one serves what waits there, or takes it away"
	atf_set require.user root
}
daemon_killed_body()
{
	! original a || atf_skip "the original takes the device along"
	pair
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=1m count=8
	for next in primary secondary; do
		await 30 in_step a || atf_fail "the nodes are not in step"
		dd if=data of="/dev/hast/$RESOURCE" bs=64k 2>/dev/null &
		writer=$!
		killed=$(cat a.pid)
		worker=$(worker_of primary)
		kill -9 "$killed"
		await 20 gone "$killed"
		await 30 gone "$worker" || atf_fail "the worker goes on without its daemon"
		test -c "/dev/hast/$RESOURCE" || atf_fail "the device went with its daemon"
		rm -f a.pid a.ctl
		start a
		role a $next
		if [ $next = primary ]; then
			wait $writer || atf_fail "the writer saw an error"
			atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=8
			atf_check_equal "$(sum data)" "$(sum copy)"
		else
			await 20 test ! -c "/dev/hast/$RESOURCE" || atf_fail "the device is still there"
			wait $writer
		fi
	done
	await 30 no_worker secondary || atf_fail "the secondary's worker does not notice"
	role b primary
	await 30 readable || atf_fail "the device does not appear on node b"
	await 60 in_step b || atf_fail "the nodes are not in step"
	check_disks
}
daemon_killed_cleanup()
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
		await 30 readable || atf_fail "no device on node $node"
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

atf_test_case modes cleanup
modes_head()
{
	atf_set descr "What is written arrives, with every replication mode, checksum and compression, over IPv4 and IPv6"
	atf_set require.user root
	atf_set timeout 1200
}
modes_body()
{
	SIZE=8m
	other_address="tcp6://[::1]"
	for mode in fullsync memsync async; do
		for checksum in crc32 sha256; do
			for compression in hole lzf; do
				echo "$mode, $checksum, $compression, $ADDRESS"
				STATEMENTS="replication $mode checksum $checksum compression $compression"
				back_and_forth
				swap_addresses
			done
			# So that either address is seen with everything.
			swap_addresses
		done
	done
}
swap_addresses()
{
	set -- "$ADDRESS"
	ADDRESS=$other_address
	other_address=$1
}
modes_cleanup()
{
	clean
}

# Written on one node, read on the other, written there, read on the first: in a pair of its own.
back_and_forth()
{
	local node other data
	pair
	dd if=/dev/random of="/dev/hast/$RESOURCE" bs=1m count=4 2>/dev/null || atf_fail "cannot write"
	for node in a b; do
		varied data 1
		dd if=data of="/dev/hast/$RESOURCE" bs=1m 2>/dev/null || atf_fail "cannot write on node $node"
		# What an original has not sent when its role changes is not sent any more.
		await 60 in_step "$node" || atf_fail "the nodes are not in step"
		other=a
		[ $node = b ] || other=b
		change_over $node $other
		dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=3 2>/dev/null || atf_fail "cannot read on node $other"
		atf_check_equal "$(sum data)" "$(sum copy)"
		await 60 in_step "$other" || atf_fail "the nodes are not in step"
	done
	check_disks
	clean
}

atf_test_case disks cleanup
disks_head()
{
	atf_set descr "A node on a file, on memory disks of every kind, and on a disk"
	atf_set require.user root
	atf_set require.progs "mdconfig"
}
disks_body()
{
	gate
	disk=$(atf_config_get disk none)
	for kind in file vnode malloc sectors disk; do
		case $kind in
		file)
			truncate -s 16m a.img
			first=$PWD/a.img
			;;
		vnode)
			truncate -s 16m vnode.img
			first=$(memory_disk -t vnode -f vnode.img)
			;;
		malloc) first=$(memory_disk -t malloc -s 16m) ;;
		sectors) first=$(memory_disk -t swap -s 16m -S 4096) ;;
		disk)
			[ "$disk" != none ] || continue
			first=$disk
			;;
		esac
		[ -e "$first" ] || atf_fail "no disk of kind $kind"
		second=$(memory_disk -t swap -s "$(size_of "$first")b" -S "$(sector_of "$first")") ||
			atf_fail "no memory disk"
		echo "$kind: $first, $second"
		pair_on "$first" "$second"
		varied data 2
		dd if=data of="/dev/hast/$RESOURCE" bs=1m 2>/dev/null || atf_fail "cannot write"
		change_over a b
		dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=6 2>/dev/null || atf_fail "cannot read"
		atf_check_equal "$(sum data)" "$(sum copy)"
		check_disks
		clean
	done
}
disks_cleanup()
{
	clean
}

size_of()
{
	if [ -f "$1" ]; then stat -f %z "$1"; else diskinfo "$1" | awk '{ print $3 }'; fi
}

sector_of()
{
	if [ -f "$1" ]; then echo 512; else diskinfo "$1" | awk '{ print $2 }'; fi
}

atf_test_case sizes cleanup
sizes_head()
{
	atf_set descr "Requests of all sizes, one sector to more than the kernel gives out at once"
	atf_set require.user root
}
sizes_body()
{
	SIZE=16m
	pair
	# The whole device: from here on it is as the file is.
	size=$(diskinfo "/dev/hast/$RESOURCE" | awk '{ print $3 }')
	truncate -s "$size" file
	atf_check -s exit:0 -e ignore dd if=file of="/dev/hast/$RESOURCE" bs=1m
	at=1
	for sectors in 1 2 3 7 8 9 31 127 255 256 257 1023 2048 2049; do
		atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=$((sectors * 512)) count=3
		for to in file "/dev/hast/$RESOURCE"; do
			# Where nothing but a sector is aligned. Of 3 blocks each.
			atf_check -s exit:0 -e ignore dd if=data of=$to bs=$((sectors * 512)) \
				oseek=$((at / sectors + 1)) conv=notrunc
		done
		at=$((at + sectors * 4))
	done
	# The last block is filled up with zeros.
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=100777 count=1
	for to in file "/dev/hast/$RESOURCE"; do
		atf_check -s exit:0 -e ignore dd if=data of=$to bs=4608 oseek=11 conv=sync,notrunc
	done
	# To the very end, and not beyond.
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=512 count=5
	for to in file "/dev/hast/$RESOURCE"; do
		atf_check -s exit:0 -e ignore dd if=data of=$to bs=512 oseek=$((size / 512 - 5)) conv=notrunc
	done
	atf_check -s not-exit:0 -e ignore dd if=data of="/dev/hast/$RESOURCE" bs=512 oseek=$((size / 512 - 4))
	# A device knows whole sectors only.
	atf_check -s not-exit:0 -e ignore dd if=data of="/dev/hast/$RESOURCE" bs=100 count=1
	atf_check -s exit:0 -e ignore dd if=data of=file bs=512 oseek=$((size / 512 - 4)) count=4 conv=notrunc

	atf_check_equal "$(sum file)" "$(dd if="/dev/hast/$RESOURCE" bs=1m 2>/dev/null | sha256)"
	change_over a b
	for sectors in 1 9 2048 6145; do
		atf_check_equal "$(dd if=file bs=$((sectors * 512)) count=300 2>/dev/null | sha256)" \
			"$(dd if="/dev/hast/$RESOURCE" bs=$((sectors * 512)) count=300 2>/dev/null | sha256)"
	done
	check_disks
}
sizes_cleanup()
{
	clean
}

atf_test_case flush cleanup
flush_head()
{
	atf_set descr "A flush of the device's cache comes to the disks of both nodes, and is counted"
	atf_set require.user root
	atf_set require.progs "gnop glabel"
}
flush_body()
{
	SIZE=24m
	gate
	kldstat -q -m g_nop || kldload geom_nop || atf_skip "there is no gnop"
	for node in a b; do
		disk=$(memory_disk -t swap -s "$SIZE") || atf_fail "no memory disk"
		atf_check -s exit:0 gnop create "$disk"
		echo "$disk.nop" >>nops
	done
	pair_on "$(sed -n 1p nops)" "$(sed -n 2p nops)"
	atf_check -s exit:0 -e ignore dd if=/dev/random of=data bs=1m count=4
	atf_check -s exit:0 -e ignore dd if=data of="/dev/hast/$RESOURCE" bs=1m
	await 30 in_step a || atf_fail "the nodes are not in step"
	before=$(count_of a flushes)
	disk_a=$(flushed "$DISK_A")
	disk_b=$(flushed "$DISK_B")
	# This stores its label, and flushes.
	atf_check -s exit:0 -o ignore glabel label "$RESOURCE" "/dev/hast/$RESOURCE"
	[ "$(count_of a flushes)" -gt "$before" ] || atf_fail "the flush has not come to the daemon"
	[ "$(flushed "$DISK_A")" -gt "$disk_a" ] || atf_fail "the flush has not come to the disk of node a"
	[ "$(flushed "$DISK_B")" -gt "$disk_b" ] || atf_fail "the flush has not come to the disk of node b"
	original b || [ "$(count_of b flushes)" -gt 0 ] || atf_fail "node b does not count it"
	atf_check -s exit:0 -o ignore glabel stop "$RESOURCE"
	# Both nodes die: what had been flushed is on both disks.
	crash a
	crash b
	atf_check_equal "$(sum data)" "$(data_on a "$DISK_A" | head -c 4194304 | sha256)"
	atf_check_equal "$(sum data)" "$(data_on b "$DISK_B" | head -c 4194304 | sha256)"
	# The device that is left behind goes with its next primary.
	start a
	role a primary
	await 30 readable || atf_fail "the device does not appear"
}
flush_cleanup()
{
	glabel stop -f "$RESOURCE" 2>/dev/null
	clean
}

# How many flushes have come to a disk.
flushed()
{
	gnop list "${1#/dev/}" | awk '$1 == "Flushes:" { print $2 }'
}

atf_test_case secondary_killed cleanup
secondary_killed_head()
{
	atf_set descr "A secondary's worker dies under load: the writer sees nothing, and the copies are the same again"
	atf_set require.user root
}
secondary_killed_body()
{
	pair
	for which in 0 1; do
		atf_check -s exit:0 -e ignore dd if=/dev/random of=data$which bs=1m count=8
	done
	write_on 2>writer.out &
	writer=$!
	for _ in 1 2 3; do
		await 60 worker_of secondary || atf_fail "there is no worker"
		await 60 status_is a complete || atf_fail "the nodes do not connect"
		killed=$(worker_of secondary)
		: >events-a
		kill -9 "$killed"
		await 20 gone "$killed"
		await 60 heard a disconnect || atf_fail "the primary does not notice"
	done
	await 60 heard a syncdone || atf_fail "the nodes are not synchronised"
	touch enough
	wait $writer || atf_fail "the writer saw an error: $(cat writer.out)"
	await 60 in_step a || atf_fail "the nodes are not in step"
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=8
	atf_check_equal "$(sum "$(cat last)")" "$(sum copy)"
	change_over a b
	atf_check -s exit:0 -e ignore dd if="/dev/hast/$RESOURCE" of=copy bs=1m count=8
	atf_check_equal "$(sum "$(cat last)")" "$(sum copy)"
	check_disks
}
secondary_killed_cleanup()
{
	clean
}

# Writes one file after the other until there is enough.
write_on()
{
	local which
	which=0
	until [ -e enough ]; do
		dd if=data$which of="/dev/hast/$RESOURCE" bs=64k 2>/dev/null || return 1
		echo data$which >last
		which=$((1 - which))
	done
}

atf_test_case hooks cleanup
hooks_head()
{
	atf_set descr "Both nodes tell their hooks what happens, in the order in which it happens"
	atf_set require.user root
}
hooks_body()
{
	[ "$(sysctl -n kern.randompid)" = 0 ] || atf_skip "process ids do not tell an order"
	pair
	await 20 heard a connect || atf_fail "node a says nothing of the connection"
	await 20 heard b connect || atf_fail "node b says nothing of the connection"
	# Something to synchronise.
	role b init
	await 20 heard a disconnect || atf_fail "node a does not notice"
	atf_check -s exit:0 -e ignore dd if=/dev/random of="/dev/hast/$RESOURCE" bs=1m count=4
	for node in a b; do
		: >events-$node
		: >hooks-$node
	done
	role b secondary
	await 60 heard a syncdone || atf_fail "the nodes are not synchronised"
	await 20 heard b connect || atf_fail "node b says nothing of the connection"
	atf_check_equal "connect syncstart syncdone" "$(told a)"
	atf_check_equal "role connect" "$(told b)"
	atf_check -s exit:0 -o inline:"role $RESOURCE init secondary\n" grep ^role events-b
}
hooks_cleanup()
{
	clean
}

# The events that a node has told its hook of, in that order. Hooks run side by side, so what they have written
# may be in another; their process ids are not.
told()
{
	sort -n "hooks-$1" | awk '{ printf "%s%s", (NR > 1 ? " " : ""), $2 }'
}

atf_test_case nbd cleanup
nbd_head()
{
	atf_set descr "Besides the device there is an NBD export if the configuration has a statement for it"
	atf_set require.user root
	atf_set require.progs "nc"
}
nbd_body()
{
	! original a || atf_skip "the original has no NBD"
	# To an original it is a comment.
	STATEMENTS="#% nbd $PWD/nbd"
	pair
	await 20 test -S "nbd/$RESOURCE.sock" || atf_fail "there is no socket"
	(sleep 2) | nc -U "nbd/$RESOURCE.sock" | dd bs=1 count=18 2>/dev/null >greeting
	atf_check -s exit:0 -o match:"^NBDMAGICIHAVEOPT" cat greeting
	change_over a b
	if original b; then
		atf_check_equal "" "$(ls nbd)"
	fi
}
nbd_cleanup()
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
	atf_add_test_case daemon_killed
	atf_add_test_case split_brain
	atf_add_test_case privileges
	atf_add_test_case modes
	atf_add_test_case disks
	atf_add_test_case sizes
	atf_add_test_case flush
	atf_add_test_case secondary_killed
	atf_add_test_case hooks
	atf_add_test_case nbd
}

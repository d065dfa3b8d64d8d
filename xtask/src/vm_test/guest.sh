#!/bin/sh
# The first process of the emulated machine: tries the block device over a primary's export, and says "PASS <what>"
# or "FAIL <what>" for each thing, at last "DONE".
set -u

export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /tmp /run /mnt /var
mount -t tmpfs -o size=700m tmpfs /tmp
[ -e /var/run ] || ln -s /run /var/run
ip link set lo up
for octet in 2 3; do ip addr add 127.0.0.$octet/8 dev lo; done
dmesg -n 1

name=shared
device=/dev/hast/$name
failed=no

finish() {
	if [ "$failed" = yes ]; then
		for log in /tmp/*/hastd.log; do
			echo "---- $log"
			tail -n 60 "$log"
		done
		echo "---- kernel"
		dmesg | tail -n 40
	fi
	echo DONE
	poweroff -f
}

# check <what> <command ...>: the command must succeed.
check() {
	what=$1
	shift
	if "$@"; then
		echo "PASS $what"
	else
		echo "FAIL $what"
		failed=yes
		finish
	fi
}

# within <seconds> <command ...>: waits until the command succeeds.
within() {
	deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || return 1
		usleep 200000
	done
}

not() { ! "$@"; }

# configure <statement>: hast.conf of both nodes, with this statement for the device.
configure() {
	cat >/tmp/hast.conf <<-END
	timeout 5
	$1
	on a { control /tmp/a/control listen 127.0.0.2 nbd /tmp/a }
	on b { control /tmp/b/control listen 127.0.0.3 nbd /tmp/b }
	resource $name {
	    on a { local /tmp/a/disk remote 127.0.0.3 source 127.0.0.2 }
	    on b { local /tmp/b/disk remote 127.0.0.2 source 127.0.0.3 }
	}
	END
}

# ctl <node> <sub-command> <argument ...>
ctl() {
	node=$1 sub=$2
	shift 2
	hastctl "$sub" -N "$node" -c /tmp/hast.conf "$@"
}

# start <node>: hastd, until it answers.
start() {
	mkdir -p "/tmp/$1"
	hastd -F -d -N "$1" -c /tmp/hast.conf -P "/tmp/$1/hastd.pid" >>"/tmp/$1/hastd.log" 2>&1 &
	within 30 ctl "$1" status
}

# stop <node>: hastd ends as it should.
stop() {
	pid=$(cat "/tmp/$1/hastd.pid")
	kill "$pid"
	wait "$pid"
}

# murder <node>: hastd does not.
murder() {
	pid=$(cat "/tmp/$1/hastd.pid")
	kill -9 "$pid"
	wait "$pid" 2>/dev/null
	[ $? -eq 137 ]
}

# reread <node> <statement>: with what hast.conf says now. That of a restarted primary takes its time.
reread() {
	configure "$2"
	reloads=$(reloads_of "$1")
	kill -HUP "$(cat "/tmp/$1/hastd.pid")"
	within 20 reloaded "$1"
}
reloads_of() { grep -c 'Configuration reloaded' "/tmp/$1/hastd.log"; }
reloaded() { [ "$(reloads_of "$1")" -gt "$reloads" ]; }

# worker: the process id of the worker of the one primary that there is
worker() {
	for process in /proc/[0-9]*; do
		case $(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) in
		"hastd: $name (primary)"*) echo "${process#/proc/}" && return 0 ;;
		esac
	done
	return 1
}
# signal <signal>: to that worker
signal() { process=$(worker) && kill "-$1" "$process"; }
# flushes: every thread of the worker has PF_MEMALLOC_NOIO, and the worker has memory that is locked
flushes() {
	process=$(worker) || return 1
	for thread in "/proc/$process/task"/*; do
		flags=$(sed 's/.*) //' "$thread/stat" | cut -d' ' -f7)
		[ $((flags & 0x80000)) != 0 ] || return 1
	done
	[ "$(sed -n 's/^VmLck:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$process/status")" -gt 0 ]
}
spared() { process=$(worker) && [ "$(cat "/proc/$process/oom_score_adj")" = -1000 ]; }

in_step() { ctl "$1" list $name | grep -q 'status: complete' && ctl "$1" list $name | grep -q 'dirty: 0 '; }
logged() { grep -q "$2" "/tmp/$1/hastd.log"; }
# is_another: the name leads to another device than the one that was left
is_another() { [ "$(readlink $device)" != "$left" ] && is_device; }
is_device() { [ -b $device ] && [ "$(blockdev --getsize64 $device)" -gt 0 ]; }
# sum <file>
sum() { md5sum <"$1" | cut -d' ' -f1; }
# holds <KiB> <file>: so much at the beginning of the device is the file
holds() { [ "$(dd if=$device bs=1k count="$1" iflag=direct 2>/dev/null | md5sum)" = "$(md5sum <"$2")" ]; }
# read_back: the file is what the device has, not what is in memory
read_back() {
	umount /mnt && mount $device /mnt && [ "$(sum /mnt/file)" = "$(sum /tmp/file)" ]
}
# write_slowly: another file, in the background, piece by piece, each of them flushed
write_slowly() {
	rm -f /tmp/errors /tmp/written /mnt/file
	dd if=/dev/urandom of=/tmp/file bs=64k count=64 2>/dev/null
	(
		for piece in $(seq 0 63); do
			dd if=/tmp/file of=/mnt/file bs=64k count=1 skip="$piece" seek="$piece" conv=notrunc,fsync 2>/dev/null ||
				echo "piece $piece" >>/tmp/errors
		done
		: >/tmp/written
	) &
}
# begun: some pieces are there
begun() { [ "$(stat -c %s /mnt/file)" -gt 1000000 ]; }
written() { [ -e /tmp/written ]; }
# It was waiting for an answer, or to send.
times_given_up() { dmesg | grep -c 'Connection timed out, retrying\|Dead connection'; }
gave_up() { [ "$(times_given_up)" -gt "$before" ]; }
# devices <word>: how many of hastd's there are
devices() {
	case $1 in
	nbd) cat /sys/block/nbd*/backend 2>/dev/null ;;
	ublk) ls -d /sys/block/ublkb* 2>/dev/null ;;
	esac | wc -l
}
# one_of <word>: what devices says of both words if there is one device
one_of() {
	case $1 in
	nbd) echo 1 0 ;;
	ublk) echo 0 1 ;;
	esac
}
# leads_to <word>: what the device's name means
leads_to() {
	case $1 in
	nbd) node=/dev/nbd ;;
	ublk) node=/dev/ublkb ;;
	esac
	[ "$(readlink $device | sed 's/[0-9]*$//')" = "$node" ]
}

# no_device <node>: the export is served all the same.
no_device() {
	check "the export is there" [ -S "/tmp/$1/$name.sock" ]
	check "and no device" not [ -e $device ]
}

# try_device <word>: everything that makes a device of a node's export, that it outlives, and that ends it. Node a is
# in role init, b secondary, and nothing is on either that the other one lacks; in the end both are in role init.
# Node b chooses by itself, and there is but one thing to choose, or nbd.
try_device() {
	echo "---- $1"
	check "the other hastd reads that it is to choose" reread b "device auto"
	check "hastd reads that it is to load the module" reread a "device $1"
	check "role primary" ctl a role primary $name
	check "the device appears" within 30 is_device
	check "no thread of the worker waits for writeback" flushes
	check "the worker is spared when memory has run out" spared
	check "its name leads to the kernel's device" leads_to "$1"
	check "it has the size of the data area" [ "$(blockdev --getsize64 $device)" -eq "$(ctl a dump $name | sed -n 's/^ *datasize: \([0-9]*\).*/\1/p')" ]
	check "it can be made to write through" [ "$(cat "/sys/block/$(basename "$(readlink $device)")/queue/fua")" = 1 ]
	dd if=/dev/urandom of=/tmp/piece bs=64k count=2 2>/dev/null
	check "write through" /sbin/dd if=/tmp/piece of=$device bs=64k oflag=direct,dsync
	check "read what was written" holds 128 /tmp/piece
	check "write zeroes" /sbin/blkdiscard -z -o 64k -l 64k $device
	dd if=/dev/zero of=/tmp/piece bs=64k count=1 seek=1 conv=notrunc 2>/dev/null
	check "read zeroes" holds 128 /tmp/piece
	check "mkfs" mkfs.ext4 -q -F $device
	check "mount" mount $device /mnt
	write_slowly
	check "write and flush" within 60 written
	check "without an error" not [ -e /tmp/errors ]
	check "read back" read_back
	check "discard" fstrim /mnt
	check "in step with the secondary" within 60 in_step a

	write_slowly
	check "a writer is at work" within 60 begun
	check "the worker is killed" signal KILL
	check "its successor takes the device over" within 180 written
	check "nobody saw an error" not [ -e /tmp/errors ]
	check "everything was written" read_back

	write_slowly
	check "a writer is at work for the second time" within 60 begun
	before=$(times_given_up)
	check "the worker is stopped" signal STOP
	if [ "$1" = nbd ]; then
		check "the kernel gives its connection up" within 90 gave_up
	else
		check "nobody is answered" not within 8 written
	fi
	check "the worker goes on" signal CONT
	check "it is connected again" within 90 written
	check "nobody has seen an error" not [ -e /tmp/errors ]
	check "everything has been written" read_back

	write_slowly
	check "a writer is at work again" within 60 begun
	check "hastd is killed" murder a
	check "hastd starts again" start a
	check "the device is still there" [ -b $device ]
	check "role primary again" ctl a role primary $name
	check "the device is found again" within 180 written
	check "still nobody saw an error" not [ -e /tmp/errors ]
	check "everything was written again" read_back
	check "there is one device" [ "$(devices "$1")" -eq 1 ]

	check "umount" umount /mnt
	dd if=/dev/urandom of=/tmp/older bs=64k count=1 2>/dev/null
	dd if=/dev/urandom of=/tmp/newer bs=64k count=1 2>/dev/null
	check "in step before a node is left alone" within 60 in_step a
	check "hastd is killed for good" murder a
	left=$(readlink $device)
	/sbin/dd if=/tmp/older of="$left" bs=64k seek=1000 oflag=direct 2>/dev/null &
	waiting=$!
	check "the other node takes over" within 60 ctl b role primary $name
	check "its device appears, and has the name" within 30 is_another
	check "it is written" dd if=/tmp/newer of=$device bs=64k seek=1000 oflag=direct
	check "it steps back" ctl b role secondary $name
	check "the first hastd starts" start a
	check "primary, with what has waited" ctl a role primary $name
	check "a device without that appears" within 60 is_device
	wait $waiting
	check "what has waited has failed" [ $? -ne 0 ]
	check "what is newer is there" [ "$(dd if=$device bs=64k skip=1000 count=1 iflag=direct 2>/dev/null | md5sum)" = "$(md5sum </tmp/newer)" ]
	check "there is one device again" [ "$(devices "$1")" -eq 1 ]
	check "in step before the role changes" within 60 in_step a
	check "role secondary instead" ctl a role secondary $name
	check "the device is gone" not [ -e $device ]
	check "the kernel has none either" [ "$(devices "$1")" -eq 0 ]
	check "the other node is primary" ctl b role primary $name
	check "the device appears there" within 30 is_device
	check "it is of the same kind" leads_to "$1"
	check "mount there" mount $device /mnt
	check "the file is the same" [ "$(sum /mnt/file)" = "$(sum /tmp/file)" ]

	sleep 1000 3<$device &
	opener=$!
	within 10 [ -e /proc/$opener/fd/3 ]
	ctl b role -n init $name >/tmp/users 2>&1
	check "who mounted it is named" grep -q 'mounted on /mnt' /tmp/users
	check "who has it open is named" grep -q "open in process $opener (" /tmp/users
	check "hastd is not" not grep -q 'NBD client' /tmp/users
	kill $opener
	check "a role change under a mounted file system" ctl b role init $name
	check "the device is gone, mounted or not" not [ -e $device ]
	check "and answers nobody" not dd if=/mnt/file of=/dev/null bs=64k iflag=direct
	check "primary again, while that is still mounted" ctl b role primary $name
	check "another device appears" within 30 is_device
	mkdir -p /tmp/again
	check "mount" mount $device /tmp/again
	check "the file is still the same" [ "$(sum /tmp/again/file)" = "$(sum /tmp/file)" ]
	check "umount of both" umount /tmp/again /mnt

	check "a hastd is killed for the second time" murder b
	check "the device waits for the next one" [ -b $device ]
	check "that starts" start b
	check "another role takes the device away" ctl b role secondary $name
	check "and its name" not [ -e $device ]
	check "the kernel has none any more" [ "$(devices "$1")" -eq 0 ]
	check "primary once more" ctl b role primary $name
	check "in step at the end" within 60 in_step b
	check "role init once more" ctl b role init $name
	check "no device is left" [ "$(devices "$1")" -eq 0 ]
	check "role init of the other node" ctl a role init $name
}

configure "device auto"
mkdir -p /tmp/a /tmp/b
truncate -s 96M /tmp/a/disk
truncate -s 96M /tmp/b/disk
for node in a b; do
	check "create on $node" ctl $node create -e 64k $name
	check "hastd of $node starts" start $node
done
check "role secondary" ctl b role secondary $name

why="The device is an NBD export only"
no_nbd="this kernel has no NBD (module nbd)"
no_ublk="this kernel has no ublk (module ublk_drv)"
check "role primary where the kernel has neither" ctl a role primary $name
check "auto says once that there is none" within 20 logged a "$why: $no_nbd, and $no_ublk"
no_device a
check "role init" ctl a role init $name
for word in nbd ublk; do
	case $word in
	nbd) missing=$no_nbd ;;
	ublk) missing=$no_ublk ;;
	esac
	check "hastd reads that it is to be $word" reread a "device $word"
	check "role primary without the module" ctl a role primary $name
	check "hastd warns that there is none" within 20 logged a "$why: ${missing}[.]"
	no_device a
	check "role init" ctl a role init $name
done

depmod
try_device ublk
# What b has is to be on a, which is the primary next time.
check "role secondary for the second time" ctl b role secondary $name
try_device nbd

check "hastd reads that it is to make no device" reread b "device none"
check "the other node is secondary" ctl a role secondary $name
check "role primary" ctl b role primary $name
check "in step once more" within 60 in_step b
no_device b
for word in ublk auto nbd; do
	check "hastd reads that it is to be $word" reread b "device $word"
	# If there are both, auto means nbd.
	case $word in
	auto) kind=nbd ;;
	*) kind=$word ;;
	esac
	check "a device of that kind appears" within 60 leads_to $kind
	check "it is usable" within 60 is_device
	check "and the one before is gone" [ "$(devices nbd) $(devices ublk)" = "$(one_of $kind)" ]
done
check "hastd ends" stop b
check "and takes the device along" not [ -e $device ]
check "the other hastd ends" stop a
finish

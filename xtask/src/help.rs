//! `cargo xtask help`.

use std::process::ExitCode;

const TEXT: &str = "\
cargo xtask demo [--keep]
    Shows a replicated disk at work: two nodes on this machine, a write on the
    first, the first killed, the data read back from the second, the first
    brought back. Builds the programs as they ship; then it takes half a minute
    and ends with a verdict. Needs no root and no packages. --keep leaves the
    pair running and says how to use it.

cargo xtask freebsd check|clippy|build|test [--arch aarch64]
    Checks, lints or builds the workspace for FreeBSD 14 on Linux. What it needs
    comes from package registries and is kept in ~/.cache/hast-freebsd, or where
    HAST_FREEBSD_HOME says. build makes hastd, hastctl and hast-failover and looks
    whether they are programs that FreeBSD runs; test links the test programs too.
    ci is what CI does: lint, link, look, and see that what only Linux has does not
    link.

cargo xtask freebsd crates
    Writes the list of crates in dist/freebsd/port from Cargo.lock. A test sees
    whether it is up to date.

cargo xtask install [--prefix DIR] [--destdir DIR] [--from DIR] [--list]
    Builds the programs for release and installs them without what only a
    debugger needs, with manuals, what starts them (systemd's units; on FreeBSD
    the script for rc.d), the scripts for failover and samples of configurations,
    below DIR (/usr/local). Says what it has installed; nothing that is there
    already is in force before you say so. If you may not write there, sudo is
    used, for the copying alone. --destdir stands for / (packages); --from
    takes the programs from a directory instead of building them; --list only
    says where everything goes, for example to remove it:
        cargo xtask install --list | sudo xargs rm -f

cargo xtask test [--all] [--yes] [--list] [STEP ...]
    What a contributor needs to know before sending a change; with --all
    everything that CI runs; or only the steps named, which --list --all shows.
    Packages that tests use are named first. As root on a system with apt they
    are installed after a question, with --yes or in CI without one; what is not
    there is skipped, and that is said. With CI set in the environment nothing
    is skipped. A step says what it does and how long it took when it last
    passed; that is kept in the target directory.

cargo xtask torture [--minutes M] [--seed N] [--mode fullsync|memsync|async]
    Two release-built daemons on this machine under clients that record every
    answer, while nodes and workers are killed, frozen and restarted, the link
    is cut and stalled, and roles change hands. After each round of a few
    seconds every acknowledged write must be there and both disks identical.
    For one minute unless told otherwise, and in a mode that changes from round
    to round. The seed decides what chance decides, as far as real processes
    allow. On a failure the directory with logs, disks and journal stays.
    --programs D takes hastd and hastctl from a directory.

cargo xtask torture --power [--cycles N | --minutes M] [--seed N] [--mode MODE]
                    [--no-faults] [--scene SCENE] [--mutant RULE]
    The same with losses of power: each node's disk forgets what was not
    flushed, tears metadata and fails in places, and the node comes back with
    another boot id. After each cycle of some seconds everything flushed or
    promised must be there, durably, on both disks, and a split-brain must have
    been found if and only if both nodes were written apart. 20 cycles unless
    told otherwise; 300 for the long profile. --no-faults leaves the disks good
    but forgetful; --scene plays one kind of history; --mutant breaks a rule of
    the engine, which has to be noticed. Linux with FUSE; root, or a user who may
    open /dev/fuse and make user namespaces.

cargo xtask sim [--minutes M] [--faults A,B]
    Two nodes of the shipping engine in a simulated world: fresh histories for M
    minutes (one), most of them storms in which everything may go wrong that
    sim/src/faults.rs lists, or A and B alone. Says how many, of which seeds, and
    which of them fail.

cargo xtask sim --seed N | --plan 'SCENE MODE N [A,B]'
    One history, told step by step: that of a seed, or a plan as a failure names
    it.

cargo xtask sim --scene NAME [--count N] [--faults A,B]
    N histories of one scene (sim/src/scenes.rs), 150 unless told otherwise, and
    how many of them fail.

cargo xtask sim --mutant RULE [--minutes M]
    Breaks one rule of the engine and looks for a history that notices.

cargo xtask fuzz [--seconds N] [TARGET ...]
    Every fuzz target, or those named, for N seconds (60) each, and a table of
    executions and coverage. An input that fails is kept, and it is said how to
    replay it. Needs a C++ compiler; installs cargo-fuzz if it is not there.

cargo xtask trace
    The rules of docs/spec: which files keep each, and which tests, scenes and
    mutants would notice. Fails if something cites a rule or a page that is not
    there, or if nothing checks a rule.

cargo xtask trace all|L1|L2|L3|L5|L6|L7|L9|L10|C1d|MapComplete|L9Marked|S1|R1
                  |C4Marked|B1|G1|G1Counted
    How a mistake of the original, or one against a rule that it never had, loses
    data, step by step, as the model of the protocol (proofs/model) finds it.

cargo xtask bench [PART ...] [--dir D] [--rounds N] [--seconds S] [--only WORKLOAD]
                  [--contender NAME COMMAND URI]
    Measures our pair, in each mode, beside plain qemu-nbd and qemu's mirror:
    io (fio), resync, map and scaling, or only the parts named. Everything is
    told as a ratio to something measured in the same run. Providers lie in
    /dev/shm unless --dir says otherwise. A server of your own takes part if
    you say how it is started and where it then is.

cargo xtask bench durable --dir D [--rounds N] [--seconds S]
    Writes that are each flushed, on a real disk, beside a program that does the
    same to two files. Not among the parts that run when none is named.

cargo xtask bench micro [--seconds S] [--only NAME]
    Steps of a request, each alone, S seconds (3) long: nv lists, frames,
    looking for zeros, checksums, LZF, the activemap. Says how each has changed
    since the last time. Not among the parts that run when none is named.

cargo xtask verify [--full] [--seconds N] [--again] [PART ...]
    The proofs, the properties next to the code and the model of the protocol,
    and one table of what was tried and what came of it. With --full, which
    takes hours, also coverage, mutation testing and every fuzz target for N
    seconds (600). Parts are checks, coverage, mutation and fuzzing. With --again
    mutation testing leaves out what was noticed the last time.

cargo xtask vm-test
    The block device over a primary's export, by NBD and by ublk, under Debian's
    kernel in a machine that qemu emulates: made, used, taken over after kills,
    and gone with the role. Takes minutes, and not part of CI. Needs qemu-system-x86; the kernel
    and busybox are downloaded, and kept in the target directory.

cargo xtask help
    Shows this.
";

pub(crate) fn show() -> ExitCode {
    print!("{TEXT}");
    ExitCode::SUCCESS
}

//! Usage, configuration errors and their exit statuses.

use std::fs;

use crate::program::{HASTCTL, Node, Ran, hastctl};

/// The original's part of the usage message.
const USAGE: &str = "usage: hastctl create [-d] [-c config] [-e extentsize] [-k keepdirty]
\t\t[-m mediasize] name ...
       hastctl role [-d] [-c config] <init | primary | secondary> all | name ...
       hastctl list [-d] [-c config] [all | name ...]
       hastctl status [-d] [-c config] [all | name ...]
       hastctl dump [-d] [-c config] [all | name ...]
       hastctl stop [-d] [-c config]
";

fn assert_usage(ran: &Ran, first: &str) {
    assert_eq!(ran.status, 64);
    assert_eq!(ran.stdout, "");
    let usage = ran.stderr.strip_prefix(first).unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(usage.starts_with(USAGE), "{usage}");
}

#[test]
fn usage_is_shown_with_status_64() {
    for line in [
        &[][..],
        &["help"],
        &["-h"],
        &["create"],
        &["create", "-h"],
        &["list", "-h"],
        &["role"],
        &["role", "primary"],
        &["role", "master", "test"],
        &["stop", "now"],
    ] {
        assert_usage(&hastctl(line), "");
    }
    assert_usage(&hastctl(&["list", "-x"]), "hastctl: illegal option -- x\n");
    assert_usage(&hastctl(&["list", "-c"]), "hastctl: option requires an argument -- c\n");
    assert_usage(&hastctl(&["status", "-e", "4m"]), "hastctl: illegal option -- e\n");
}

#[test]
fn what_is_wrong_is_said_behind_the_usage() {
    for (line, last) in [
        (&["staus"][..], "hastctl: unknown command staus; did you mean status?"),
        (&["role", "master", "test"], "hastctl: unknown role master: init, primary and secondary are roles"),
        (&["role", "primary"], "hastctl: the name of a resource is missing"),
    ] {
        let ran = hastctl(line);
        assert_usage(&ran, "");
        assert_eq!(ran.stderr.lines().last(), Some(last));
    }
}

#[test]
fn help_and_version_are_status_0_on_standard_output() {
    for line in [&["--help"][..], &["role", "--help"]] {
        let ran = hastctl(line);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        for command in ["create", "role", "list", "status", "dump", "compare", "discard", "reload", "stop"] {
            let lines = ran.stdout.lines().filter(|line| line.starts_with(&format!("  {command} ")));
            assert_eq!(lines.count(), 1, "{command}: {}", ran.stdout);
        }
    }
    let version = concat!("hastctl ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(hastctl(&["--version"]).stdout, version);
    assert_eq!(hastctl(&["--version"]).status, 0);
}

/// An option behind the first operand would be taken for a resource, and what it asks for would be left out.
#[test]
fn an_option_behind_the_first_operand_is_refused() {
    let node = Node::with_provider(1 << 20);
    // Nobody listens: it does not come to that.
    for (line, word, first) in [
        (&["role", "secondary", "-n", "test"][..], "-n", ", and options come before `secondary'"),
        (&["role", "primary", "test", "-f"], "-f", ", and options come before `primary'"),
        (&["status", "test", "-v"], "-v", ", and options come before `test'"),
        (&["create", "test", "-m", "1m"], "-m", ", and options come before `test'"),
        (&["list", "--", "-v"], "-v", ""),
    ] {
        let ran = node.hastctl(line);
        let expected =
            format!("[ERROR] `{word}' is no resource of the configuration{first}. Nothing was done.\n");
        assert_eq!(ran, Ran { status: 64, stdout: String::new(), stderr: expected }, "{line:?}");
    }
    assert!(fs::read(node.provider()).unwrap().iter().all(|byte| *byte == 0));
    // Where such a resource exists it is one.
    let node = Node::new("a", "resource -n { on a { local /hast/a.img remote none } }\n");
    node.put("a.img", 1 << 20, &[]);
    assert_eq!(node.hastctl(&["create", "--", "-n"]).status, 0);
    assert_eq!(node.hastctl(&["dump", "--", "-n"]).status, 0);
    assert_eq!(node.hastctl(&["role", "init", "-n"]).status, 71);
    // Without a configuration the file is what is missing, perhaps because of that very word.
    let ran = hastctl(&["status", "x", "-c", "/nonexistent"]);
    if ran.status == 72 {
        assert!(ran.stderr.contains("`-c' counts as the name of a resource"), "{ran:?}");
    }
}

#[test]
fn invalid_sizes_are_named() {
    for (option, name) in [("-e", "extentsize"), ("-k", "keepdirty"), ("-m", "mediasize")] {
        for value in ["x", "", "4mX", "08", "16e", "-1", "1 k"] {
            let ran = hastctl(&["create", option, value, "test"]);
            let expected =
                Ran { status: 64, stdout: String::new(), stderr: format!("hastctl: Invalid {name}\n") };
            assert_eq!(ran, expected, "{option} {value:?}");
        }
    }
}

#[test]
fn a_missing_configuration_is_72() {
    let node = Node::with_provider(1 << 20);
    let missing = node.path("missing.conf");
    for sub in
        [&["status"][..], &["list"], &["dump"], &["create", "test"], &["role", "init", "all"], &["stop"]]
    {
        let (first, rest) = sub.split_first().unwrap();
        let mut line = vec![*first, "-N", "a", "-c", missing.to_str().unwrap()];
        line.extend(rest);
        let ran = hastctl(&line);
        assert_eq!((ran.status, ran.stdout.as_str()), (72, ""), "{ran:?}");
        assert!(ran.stderr.starts_with("[ERROR] "), "{ran:?}");
        assert!(ran.stderr.contains("missing.conf"), "{ran:?}");
        assert!(ran.stderr.ends_with(": No such file or directory.\n"), "{ran:?}");
    }
    let ran: Ran = std::process::Command::new(HASTCTL)
        .args(["status", "-c", "also/missing.conf"])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.status, 72);
}

#[test]
fn a_wrong_configuration_is_78() {
    let node = Node::new("a", "resource test {\n\tnonsense\n}\n");
    let ran = node.hastctl(&["status"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (78, ""), "{ran:?}");
    assert!(ran.stderr.contains("hast.conf:2:"), "{ran:?}");
    assert!(ran.stderr.contains("nonsense"), "{ran:?}");
}

#[test]
fn the_node_can_be_chosen() {
    let node = Node::with_provider(1 << 20);
    let configuration = node.path("hast.conf");
    let ran = hastctl(&["dump", "-c", configuration.to_str().unwrap(), "-N", "nobody"]);
    assert_eq!(ran.status, 78, "{ran:?}");
    assert_eq!(node.hastctl(&["create", "test"]).status, 0);
    assert_eq!(node.hastctl(&["dump"]).status, 0);
}

#[test]
fn output_that_cannot_be_written_is_74() {
    let node = Node::with_provider(1 << 20);
    assert_eq!(node.hastctl(&["create", "test"]).status, 0);
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        eprintln!("skipped: no /dev/full here");
        return;
    };
    let ran: Ran =
        node.command(&["dump"]).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap().into();
    assert_eq!(ran.status, 74);
    assert_eq!(ran.stderr, "[ERROR] Unable to write output: No space left on device.\n");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let node = Node::with_provider(1 << 20);
    assert_eq!(node.hastctl(&["create", "test"]).status, 0);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran: Ran =
        node.command(&["dump"]).stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap().into();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}

//! hast.conf(5) says what the code does: its examples are read, its lists compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{error, node};
use hast_conf::{
    Address, Checksum, DEFAULT_CONTROL, DEFAULT_NBD_DIRECTORY, DEFAULT_PIDFILE, Replication, parse,
};
use std::fs;
use std::path::{Path, PathBuf};

fn page() -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/man/hast.conf.5")).unwrap()
}

/// The displays of the section of this title, each as its lines.
fn displays(section: &str) -> Vec<String> {
    let page = page();
    let (_, rest) = page.split_once(&format!("\n.Sh {section}\n")).unwrap();
    let section = rest.split("\n.Sh ").next().unwrap();
    let displays = section.split("\n.Bd ").skip(1);
    displays
        .map(|display| display.split_once('\n').unwrap().1.split("\n.Ed").next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_example_is_a_configuration_for_both_nodes() {
    let displays = displays("EXAMPLES");
    for (name, listen, remote, mail) in [
        ("hasta", "10.9.0.1", "10.9.0.2", "/srv/mail.img"),
        ("hastb", "10.9.0.2", "10.9.0.1", "/data/mail.img"),
    ] {
        let config =
            parse(&displays[0], "hast.conf(5)", &node(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.listen, [Address::parse(&format!("tcp4://{listen}")).unwrap()]);
        assert_eq!(config.resources.len(), 2);
        assert_eq!(config.resources[0].remote_text(), format!("tcp4://{remote}"));
        assert_eq!(config.resources[0].checksum, Checksum::Crc32);
        assert_eq!(config.resources[1].replication, Replication::Fullsync);
        assert_eq!(config.resources[1].localpath, Path::new(mail));
        assert_eq!(config.warnings, [""; 0]);
    }
}

#[test]
fn the_grammar_names_every_statement_that_is_expected() {
    let grammar = &displays("DESCRIPTION")[1];
    let offered = |text: &str| -> Vec<String> {
        let message = error(text);
        let (_, expected) = message.split_once("\nexpected ").unwrap();
        expected
            .split('`')
            .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
            .map(str::to_owned)
            .collect()
    };
    let (mut top, mut on, mut resource, mut resource_on) = (vec![], vec![], vec![], vec![]);
    let mut sections: Vec<&str> = Vec::new();
    for line in grammar.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let keyword = line.split(' ').next().unwrap();
        if keyword == "}" {
            sections.pop();
            continue;
        }
        match sections.as_slice() {
            [] => &mut top,
            ["on"] => &mut on,
            ["resource"] => &mut resource,
            _ => &mut resource_on,
        }
        .push(keyword.to_owned());
        if line.ends_with('{') {
            sections.push(keyword);
        }
    }
    for (mut documented, text) in [
        (top, "?? x"),
        (on, "on a { x"),
        (resource, "resource r { x"),
        (resource_on, "resource r { on a { x"),
    ] {
        let mut real = offered(text);
        real.retain(|word| word != "or");
        real.sort();
        documented.sort();
        assert_eq!(documented, real, "{text}");
    }
}

#[test]
fn the_list_of_reserved_words_is_complete() {
    let list = displays("DESCRIPTION")[0].replace('\n', " ");
    let words: Vec<&str> = list.split(", ").map(str::trim).collect();
    assert_eq!(words.len(), 24);
    for word in words {
        assert!(error(&format!("resource {word} {{")).contains("is a reserved word"), "{word}");
    }
}

#[test]
fn the_addresses_are_addresses() {
    for line in displays("ADDRESSES")[0].lines() {
        Address::parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn the_extension_line_is_one() {
    let config = parse(&displays("EXTENSIONS")[0], "hast.conf(5)", &node("a")).unwrap();
    assert_eq!(config.nbd, Path::new("/run/hast"));
}

#[test]
fn the_error_looks_like_that() {
    let text = "resource r {\n\n        replication fast\n";
    let shown = parse(text, "/etc/hast.conf", &node("a")).unwrap_err().to_string();
    assert_eq!(shown, displays("DIAGNOSTICS")[0]);
}

#[test]
fn the_default_paths_are_these() {
    let page = page();
    for path in [DEFAULT_CONTROL, DEFAULT_PIDFILE, DEFAULT_NBD_DIRECTORY] {
        assert!(page.contains(&format!(".Pa {path} .\n")), "{path}");
    }
}

#[test]
fn each_statement_has_an_entry() {
    let page = page();
    let entries: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix(".It Ic ")?.split(' ').next()).collect();
    for line in displays("DESCRIPTION")[1].lines().map(str::trim).filter(|line| !line.is_empty()) {
        let keyword = line.split(' ').next().unwrap();
        assert!(keyword == "}" || entries.contains(&keyword), "{keyword}");
    }
}

/// What is installed as a sample is a configuration for both of its nodes.
#[test]
fn the_sample_is_a_configuration() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../dist/hast.conf.sample");
    let text = fs::read_to_string(path).unwrap();
    // The statements that are switched off are right as well.
    let all = text.replace("\n#replication", "\nreplication").replace("\n#checksum", "\nchecksum");
    let all = all.replace("\n#device", "\ndevice");
    for (text, name) in [(&text, "alpha"), (&text, "beta"), (&all, "alpha")] {
        let config = parse(text, "hast.conf.sample", &node(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((config.resources.len(), config.warnings.len()), (1, 0));
    }
}

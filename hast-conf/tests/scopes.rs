//! Scopes, defaults and node sections: which value counts (spec conf.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{config, error, node, resource, with, with_families, with_uuid};
use hast_conf::{Address, Checksum, Compression, Config, Replication, parse};
use proptest::prelude::*;
use std::path::Path;

fn texts(addresses: &[Address]) -> Vec<&str> {
    addresses.iter().map(Address::as_str).collect()
}

#[test]
fn defaults() {
    let config = config("resource r { on a { local /d remote b } }");
    assert_eq!(config.control.as_str(), "uds:///var/run/hastctl");
    assert_eq!(config.control.unix_path(), Some(Path::new("/var/run/hastctl")));
    assert_eq!(config.pidfile, Path::new("/var/run/hastd.pid"));
    assert_eq!(texts(&config.listen), ["tcp4://0.0.0.0:8457", "tcp6://[::]:8457"]);
    assert!(config.listen_is_default);
    assert_eq!(config.nbd, Path::new("/var/run/hast"));
    let r = &config.resources[0];
    assert_eq!(r.replication, Replication::Memsync);
    assert_eq!(r.checksum, Checksum::None);
    assert_eq!(r.compression, Compression::Hole);
    assert_eq!(r.timeout, 20);
    assert_eq!(r.exec, None);
    assert!(r.metaflush);
    assert_eq!(r.provname, "r");
    assert_eq!(r.source, None);
}

#[test]
fn each_default_listen_needs_its_family() {
    for (inet, inet6, expected) in [
        (true, false, &["tcp4://0.0.0.0:8457"][..]),
        (false, true, &["tcp6://[::]:8457"]),
        (false, false, &[]),
    ] {
        let node = with_families("a", inet, inet6);
        let config = parse("", "hast.conf", &node).unwrap();
        assert_eq!(texts(&config.listen), expected);
        assert!(config.listen_is_default);
        // What was asked for is not the kernel's choice.
        let config = parse("listen tcp4://0.0.0.0 listen tcp6://::", "hast.conf", &node).unwrap();
        assert_eq!(config.listen.len(), 2);
    }
}

#[test]
fn default_listens_only_if_none_is_given() {
    assert_eq!(texts(&config("listen 10.0.0.1").listen), ["10.0.0.1"]);
    assert_eq!(texts(&config("on a { listen 10.0.0.1 }").listen), ["10.0.0.1"]);
    assert!(!config("on a { listen 10.0.0.1 }").listen_is_default);
    assert!(config("on b { listen 10.0.0.1 }").listen_is_default);
}

#[test]
fn node_sections_override_control_and_pidfile_and_add_listens() {
    let text = "on a { control /a pidfile /pa listen 10.0.0.1 } control /g pidfile /pg listen 10.0.0.2
                on b { control /b pidfile /pb listen 10.0.0.3 }";
    let a = config(text);
    assert_eq!((a.control.as_str(), a.pidfile.as_path()), ("/a", Path::new("/pa")));
    assert_eq!(texts(&a.listen), ["10.0.0.1", "10.0.0.2"]);
    let c = parse(text, "hast.conf", &node("c")).unwrap();
    assert_eq!((c.control.as_str(), c.pidfile.as_path()), ("/g", Path::new("/pg")));
    assert_eq!(texts(&c.listen), ["10.0.0.2"]);
}

#[test]
fn several_node_sections_merge_at_the_top_too() {
    let config =
        config("on a { control /1 listen 10.0.0.1 } on a { control /2 listen 10.0.0.2 } on a { pidfile /3 }");
    assert_eq!((config.control.as_str(), config.pidfile.as_path()), ("/2", Path::new("/3")));
    assert_eq!(texts(&config.listen), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn listen_accumulates_each_endpoint_once() {
    let config = config("listen 10.0.0.1 listen 10.0.0.2 listen 10.0.0.1:8457 on a { listen 10.0.0.2 }");
    assert_eq!(texts(&config.listen), ["10.0.0.2", "10.0.0.1"]);
}

#[test]
fn the_nearest_scope_wins() {
    let r = with("timeout 1", "timeout 2", "");
    assert_eq!(r.timeout, 2);
    assert_eq!(with("replication async", "replication fullsync", "").replication, Replication::Fullsync);
    assert_eq!(with("replication async", "", "").replication, Replication::Async);
    assert_eq!(with("checksum crc32", "checksum none", "").checksum, Checksum::None);
    assert_eq!(with("checksum crc32", "", "").checksum, Checksum::Crc32);
    assert_eq!(with("compression lzf", "compression none", "").compression, Compression::None);
    assert_eq!(with("compression lzf", "", "").compression, Compression::Lzf);
    assert_eq!(with("exec /g", "exec /r", "").exec.as_deref(), Some(Path::new("/r")));
    assert_eq!(with("exec /g", "", "").exec.as_deref(), Some(Path::new("/g")));
    assert!(with("metaflush on", "metaflush off", "metaflush on").metaflush);
    assert!(!with("metaflush on", "metaflush on", "metaflush off").metaflush);
    assert!(!with("metaflush on", "metaflush off", "").metaflush);
    assert!(!with("metaflush off", "", "").metaflush);
    assert_eq!(with("", "name p", "name q").provname, "q");
    assert_eq!(with("", "name p", "").provname, "p");
    assert_eq!(resource("resource r { local /r on a { remote b } }").localpath, Path::new("/r"));
    assert_eq!(resource("resource r { local /r on a { remote b local /a } }").localpath, Path::new("/a"));
}

#[test]
fn one_resources_values_are_not_anothers() {
    let config = config(
        "resource r { timeout 1 replication async checksum crc32 compression lzf exec /x metaflush off name n
                      on a { local /r remote b source c } }
         resource s { local /s on a { remote none } }",
    );
    let s = config.resource("s").unwrap();
    let alone = resource("resource s { local /s on a { remote none } }");
    assert_eq!(s, &alone);
}

#[test]
fn global_values_apply_after_the_whole_file_is_read() {
    let before = "timeout 1 replication async checksum crc32 compression lzf exec /x metaflush off";
    let resource = "resource r { on a { local /d remote b } }";
    assert_eq!(config(&format!("{before} {resource}")), config(&format!("{resource} {before}")));
}

#[test]
fn the_last_statement_of_a_kind_wins_at_its_level() {
    let r =
        with("timeout 1 timeout 2", "name p name q local /x local /y", "local /1 local /2 source c source d");
    assert_eq!((r.timeout, r.provname.as_str(), r.localpath.as_path()), (2, "q", Path::new("/2")));
    assert_eq!(r.source.unwrap().as_str(), "d");
    assert_eq!(with("timeout 1", "timeout 3 timeout 4", "").timeout, 4);
    assert_eq!(with("", "", "remote none").remote, None);
    assert_eq!(with("", "", "remote none remote c").remote_text(), "c");
    assert_eq!(config("control /1 control /2").control.as_str(), "/2");
    assert_eq!(config("pidfile /1 pidfile /2").pidfile, Path::new("/2"));
}

#[test]
fn a_resources_sections_for_this_node_merge_and_later_values_win() {
    let text = "resource r { on a { local /1 remote b name n } on x { local /x remote x }
                on a.example.org { local /2 source c } on 4c4c4544-0051-3510-8052-b4c04f4a4e31 { remote d metaflush off } }";
    let node = with_uuid("a.example.org", "4C4C4544-0051-3510-8052-B4C04F4A4E31");
    let config = parse(text, "hast.conf", &node).unwrap();
    let r = &config.resources[0];
    assert_eq!((r.localpath.as_path(), r.provname.as_str(), r.remote_text()), (Path::new("/2"), "n", "d"));
    assert_eq!(r.source.as_ref().unwrap().as_str(), "c");
    assert!(!r.metaflush);
}

#[test]
fn sections_match_by_full_name_short_name_and_uuid() {
    let uuid = "4c4c4544-0051-3510-8052-b4c04f4a4e31";
    let node = with_uuid("a.example.org", uuid);
    let section = |name: &str| parse(&format!("on {name} {{ pidfile /mine }}"), "hast.conf", &node).unwrap();
    let mine = |config: Config| config.pidfile == Path::new("/mine");
    for name in ["a.example.org", "a", uuid, &uuid.to_uppercase()] {
        assert!(mine(section(name)), "{name}");
    }
    for name in ["A", "a.example", "A.example.org", "b.example.org", "hostid1"] {
        assert!(!mine(section(name)), "{name}");
    }
}

#[test]
fn a_missing_section_says_which_node_names_would_match() {
    let node = with_uuid("a.example.org", "4c4c4544-0051-3510-8052-b4c04f4a4e31");
    let text =
        parse("resource r { on b { } on c.example.org { } }", "hast.conf", &node).unwrap_err().to_string();
    assert!(
        text.contains("resource r has no `on` section for this node, only for b, c.example.org\n"),
        "{text}"
    );
    let expected = "expected `on a.example.org`, `on a` or `on 4c4c4544-0051-3510-8052-b4c04f4a4e31`";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn what_a_resource_must_have() {
    assert!(error("resource r { on a { local /d } }").contains("resource r has no `remote` for this node"));
    assert!(error("resource r { on a { local /d } on b { remote a } }").contains("has no `remote`"));
    assert!(error("resource r { on a { remote b } }").contains("resource r has no `local`"));
    assert!(error("resource r { on a { remote b } on b { local /d } }").contains("has no `local`"));
    assert!(
        error("resource r { on a { local /d remote b } } resource r { }")
            .contains("given twice, first at line 1")
    );
}

#[test]
fn resources_keep_the_order_of_the_file() {
    let text: String =
        ["c", "a", "b"].map(|r| format!("resource {r} {{ on a {{ local /{r} remote b }} }}\n")).concat();
    let names: Vec<String> = config(&text).resources.into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["c", "a", "b"]);
}

#[test]
fn sixty_four_resources() {
    let text: String =
        (0..64).map(|n| format!("resource r{n} {{ on a {{ local /d{n} remote b }} }}\n")).collect();
    assert_eq!(config(&text).resources.len(), 64);
}

proptest! {
    /// Order matters neither between levels nor between statements of different kinds.
    #[test]
    fn order_does_not_matter(
        globals in Just(vec![
            "timeout 9", "replication async", "checksum crc32", "compression lzf", "exec /x", "metaflush off",
            "control /c", "pidfile /p", "listen 10.0.0.1", "nbd /n", "#% nbd /n", "on a { pidfile /q }", "on b { pidfile /r }",
            "RESOURCE",
        ]).prop_shuffle(),
        body in Just(vec![
            "timeout 8", "replication fullsync", "name n", "local /d", "metaflush on", "on b { remote a }",
            "on a { remote b }", "on a { source c }",
        ]).prop_shuffle(),
    ) {
        let resource = format!("resource r {{\n{}\n}}", body.join("\n"));
        let text = globals.join("\n").replace("RESOURCE", &resource);
        let expected = config(
            "listen 10.0.0.1 nbd /n checksum crc32 compression lzf exec /x control /c pidfile /q
             resource r { timeout 8 replication fullsync name n local /d metaflush on on a { remote b source c } }",
        );
        prop_assert_eq!(config(&text), expected);
    }
}

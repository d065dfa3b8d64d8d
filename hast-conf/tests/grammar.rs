//! Tokens, statements, addresses and limits: the sentences of spec conf.md one by one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{config, error, node, resource, with};
use hast_conf::{Address, Checksum, Compression, DEFAULT_NBD_DIRECTORY, KernelDevice, Replication, parse};
use std::path::{Path, PathBuf};

fn texts(addresses: &[Address]) -> Vec<&str> {
    addresses.iter().map(Address::as_str).collect()
}

#[test]
fn every_statement_of_every_scope() {
    let text = "
        control uds:///tmp/ctl
        pidfile /tmp/pid
        listen 10.0.0.1
        listen tcp6://[fe80::1]:99
        replication async
        checksum crc32
        compression lzf
        timeout 7
        exec /tmp/hook
        metaflush off
        nbd /tmp/nbd
        on a {
            control /tmp/ctl.a
            listen 10.0.0.2
            pidfile /tmp/pid.a
            nbd /tmp/nbd.a
        }
        resource full {
            replication fullsync
            checksum sha256
            compression none
            timeout 8
            exec /tmp/hook.full
            metaflush on
            name prov
            local /dev/ada0
            on a {
                name prov.a
                local /dev/ada1
                remote tcp4://10.0.0.9
                source 10.0.0.1
                metaflush off
            }
        }
        resource bare { on a { local /dev/ada2 remote none } }";
    let config = config(text);
    assert_eq!(config.control.as_str(), "/tmp/ctl.a");
    assert_eq!(config.pidfile, Path::new("/tmp/pid.a"));
    assert_eq!(texts(&config.listen), ["10.0.0.2", "10.0.0.1", "tcp6://[fe80::1]:99"]);
    assert!(!config.listen_is_default);
    assert_eq!(config.nbd, Path::new("/tmp/nbd.a"));
    assert_eq!(config.warnings, [""; 0]);

    let full = config.resource("full").unwrap();
    assert_eq!(full.provname, "prov.a");
    assert_eq!(full.localpath, Path::new("/dev/ada1"));
    assert_eq!(full.remote_text(), "tcp4://10.0.0.9");
    assert_eq!(full.source.as_ref().unwrap().as_str(), "10.0.0.1");
    assert_eq!(full.source.as_ref().unwrap().port(), Some(0));
    assert_eq!(full.replication, Replication::Fullsync);
    assert_eq!(full.checksum, Checksum::Sha256);
    assert_eq!(full.compression, Compression::None);
    assert_eq!(full.timeout, 8);
    assert_eq!(full.exec.as_deref(), Some(Path::new("/tmp/hook.full")));
    assert!(!full.metaflush);

    let bare = config.resource("bare").unwrap();
    assert_eq!(bare.provname, "bare");
    assert_eq!((bare.remote.as_ref(), bare.remote_text()), (None, "none"));
    assert_eq!(bare.source, None);
    assert_eq!(bare.replication, Replication::Async);
    assert_eq!(bare.checksum, Checksum::Crc32);
    assert_eq!(bare.compression, Compression::Lzf);
    assert_eq!(bare.timeout, 7);
    assert_eq!(bare.exec.as_deref(), Some(Path::new("/tmp/hook")));
    assert!(!bare.metaflush);
    assert!(config.resource("other").is_none());
}

#[test]
fn every_value_of_every_choice() {
    for mode in [Replication::Fullsync, Replication::Memsync, Replication::Async] {
        assert_eq!(with("", &format!("replication {}", mode.as_str()), "").replication, mode);
    }
    for checksum in [Checksum::None, Checksum::Crc32, Checksum::Sha256] {
        assert_eq!(with("", &format!("checksum {}", checksum.as_str()), "").checksum, checksum);
    }
    for compression in [Compression::None, Compression::Hole, Compression::Lzf] {
        assert_eq!(with("", &format!("compression {}", compression.as_str()), "").compression, compression);
    }
    for (word, value) in [("on", true), ("off", false)] {
        assert_eq!(with("", &format!("metaflush {word}"), "").metaflush, value);
    }
}

#[test]
fn values_are_lower_case_and_belong_to_their_statement() {
    for statement in [
        "replication ASYNC",
        "checksum hole",
        "compression crc32",
        "metaflush ON",
        "replication none",
        "metaflush async",
    ] {
        assert!(error(statement).contains(": wrong value `"), "{statement}");
    }
}

#[test]
fn there_are_no_separators_but_blanks() {
    let tight = "resource r{on a{local /d remote b}on b{local /d remote a}}";
    let spread = "resource\n\n\tr\t\n{ on\na\n{ local\n/d # the disk\n remote#b\nb } on b {local /d\r\nremote a\r\n}\r\n}";
    assert_eq!(config(tight), config(spread));
    assert_eq!(config(spread).warnings, [""; 0]);
}

#[test]
fn a_comment_on_the_last_line_needs_no_newline() {
    assert_eq!(config("timeout 5 # seconds").resources, []);
    assert_eq!(config("# nothing").resources, []);
}

#[test]
fn a_file_without_resources_is_valid() {
    for text in ["", "\n", "replication async\n", "on a { }", "on b { pidfile /p }"] {
        assert_eq!(config(text).resources, [], "{text:?}");
    }
}

#[test]
fn reserved_words_cannot_be_names_paths_or_addresses() {
    let reserved = "control pidfile listen replication checksum compression timeout exec metaflush resource name local \
                    remote source on off fullsync memsync async none crc32 sha256 hole lzf";
    for word in reserved.split_whitespace() {
        for text in [
            format!("resource {word} {{"),
            format!("on {word} {{"),
            format!("pidfile {word}"),
            format!("exec {word}"),
            format!("control {word}"),
            format!("listen {word}"),
            format!("nbd {word}"),
            format!("resource r {{ name {word}"),
            format!("resource r {{ local {word}"),
            format!("resource r {{ on {word} {{"),
            format!("resource r {{ on a {{ name {word}"),
            format!("resource r {{ on a {{ local {word}"),
            format!("resource r {{ on a {{ source {word}"),
        ] {
            assert!(error(&text).contains(&format!(": `{word}` is a reserved word\n")), "{text}");
        }
        let remote = format!("resource r {{ on a {{ remote {word} local /d }} }}");
        if word == "none" {
            assert_eq!(resource(&remote).remote, None);
        } else {
            assert!(error(&remote).contains(&format!(": `{word}` is a reserved word\n")), "{word}");
        }
        // Only in lower case and only as a whole.
        for name in [word.to_uppercase(), format!("{word}0")] {
            assert_eq!(resource(&format!("resource {name} {{ on a {{ local /d remote b }} }}")).name, name);
        }
    }
}

#[test]
fn a_word_that_begins_no_statement_is_an_error_unless_it_is_a_value() {
    assert!(error("nodes 2").contains("unknown word `nodes`"));
    assert!(error("Resource r { }").contains("unknown word `Resource`"));
    assert!(error("resource r { timeouts 2").contains("unknown word `timeouts`"));
    assert!(error("async").contains("`async` cannot stand here"));
}

#[test]
fn digits_alone_are_no_name() {
    for text in [
        "resource 1 {",
        "on 2130706433 {",
        "pidfile 1",
        "listen 1",
        "resource r { name 1",
        "resource r { local 1",
        "resource r { on 1",
        "resource r { on a { remote 1",
        "resource r { on a { source 1",
    ] {
        assert!(error(text).contains("` is a number\n"), "{text}");
    }
    assert_eq!(with("", "", "name 1a").provname, "1a");
}

#[test]
fn on_remote_and_source_have_their_place() {
    for text in [
        "resource r { remote b",
        "resource r { source b",
        "resource r { on a { on a {",
        "resource r { resource q {",
        "resource r { listen b",
        "resource r { on a { replication async",
        "resource r { on a { timeout 1",
        "resource r { on a { exec /x",
        "on a { on a {",
        "on a { timeout 1",
        "on a { resource r {",
        "remote b",
        "source b",
        "local /d",
        "name r",
    ] {
        assert!(error(text).contains("` cannot stand here\n"), "{text}");
    }
}

#[test]
fn exec_none_is_an_error() {
    assert!(error("exec none").contains("`none` is a reserved word"));
}

#[test]
fn characters_outside_the_word_set_are_skipped_with_a_warning() {
    let plain = config("resource r { name p on a { local /d remote b } }");
    let strange = config("resource \"r\" {\n\tname p;\n\ton a { local '/d' remote b } }\u{feff}");
    assert_eq!(strange.resources, plain.resources);
    assert_eq!(
        strange.warnings,
        [
            "hast.conf:1:10: skipped `\"`, no word has this",
            "hast.conf:1:12: skipped `\"`, no word has this",
            "hast.conf:2:8: skipped `;`, no word has this",
            "hast.conf:3:15: skipped `'`, no word has this",
            "hast.conf:3:18: skipped `'`, no word has this",
            "hast.conf:3:32: skipped `\u{feff}`, no word has this",
        ]
    );
    // They separate words, and what a comment holds is nobody's business.
    assert_eq!(with("", "name;p", "").provname, "p");
    assert_eq!(config("# \"quoted\"; é").warnings, [""; 0]);
    // Never more messages than anybody reads, and nothing that a terminal would obey.
    let many = config(&"\x1b \n".repeat(10_000));
    assert_eq!(many.warnings.len(), 51);
    assert_eq!(many.warnings[0], "hast.conf:1:1: skipped `?`, no word has this");
    assert_eq!(many.warnings[50], "hast.conf: 9950 more places were skipped");
}

#[test]
fn addresses_keep_their_text_and_have_default_ports() {
    for (text, port) in [
        ("10.0.0.2", 8457),
        ("tcp4://10.0.0.2:1", 1),
        ("2001:db8::1", 8457),
        ("[2001:db8::1]", 8457),
        ("[2001:db8::1]:2", 2),
        ("tcp6://[fe80::1%eth0]:3", 3),
        ("fe80::1%eth0.7", 8457),
        ("TCP://b", 8457),
    ] {
        let remote = resource(&format!("resource r {{ on a {{ local /d remote {text} }} }}")).remote.unwrap();
        assert_eq!((remote.as_str(), remote.port()), (text, Some(port)));
        let source = with("", "", &format!("source {text}")).source.unwrap();
        assert_eq!((source.as_str(), source.port()), (text, Some(if port == 8457 { 0 } else { port })));
    }
    for text in ["/tmp/s", "uds:///tmp/s", "unix:///tmp/s"] {
        assert_eq!(config(&format!("control {text}")).control.unix_path(), Some(Path::new("/tmp/s")));
    }
}

#[test]
fn limits_of_names() {
    let name = "n".repeat(254);
    assert_eq!(resource(&format!("resource {name} {{ name p on a {{ local /d remote b }} }}")).name, name);
    let above = "the resource name has 255 bytes, at most 254 are possible";
    assert!(error(&format!("resource n{name} {{")).contains(above));
    // A provider name of that length has no NBD socket; another node's may have a device.
    for place in ["resource r { name", "resource r { on a { name", "resource r { on b { name"] {
        assert!(error(&format!("{place} {name}")).contains("the file ends inside"), "{place}");
        let above = "the provider name has 255 bytes, at most 254 are possible";
        assert!(error(&format!("{place} n{name}")).contains(above), "{place}");
    }
}

#[test]
fn limits_of_paths() {
    let path = format!("/{}", "p".repeat(1022));
    let r = with("", &format!("exec {path}"), &format!("local {path}"));
    assert_eq!((r.exec, r.localpath), (Some(PathBuf::from(&path)), PathBuf::from(&path)));
    assert_eq!(config(&format!("pidfile {path}")).pidfile, Path::new(&path));
    assert_eq!(config(&format!("nbd {path}")).nbd, Path::new(&path));
    let above = "the path has 1024 bytes, at most 1023 are possible";
    for place in
        ["pidfile", "exec", "nbd", "resource r { local", "resource r { exec", "resource r { on b { local"]
    {
        assert!(error(&format!("{place} {path}p")).contains(above), "{place}");
    }
}

#[test]
fn limits_of_addresses() {
    let host = "h".repeat(1023);
    assert_eq!(with("", "", &format!("source {host}")).source.unwrap().as_str(), host);
    let above = "the address has 1024 bytes, at most 1023 are possible";
    for place in ["control", "listen", "resource r { on a { remote", "resource r { on b { source"] {
        assert!(error(&format!("{place} {host}h")).contains(above), "{place}");
    }
}

#[test]
fn limits_of_unix_sockets() {
    let limit = if cfg!(target_os = "freebsd") { 103 } else { 107 };
    let path = format!("/{}", "s".repeat(limit - 1));
    assert_eq!(config(&format!("control {path}")).control.as_str(), path);
    let above = format!("the unix socket path has {} bytes, this system takes at most {limit}", limit + 1);
    for text in [format!("control {path}s"), format!("on a {{ control uds://{path}s }}")] {
        assert!(error(&text).contains(&above), "{text}");
    }
    // The other node may run a system that takes it.
    let other = format!(
        "on b {{ control {path}s listen {path}s }} resource r {{ on b {{ remote {path}s source {path}s }}
        on a {{ local /d remote b }} }}"
    );
    assert_eq!(config(&other).control.as_str(), "uds:///var/run/hastctl");
}

#[test]
fn timeouts_are_positive_numbers() {
    for (text, seconds) in [("1", 1), ("010", 10), ("2147483647", 2_147_483_647)] {
        assert_eq!(with("", &format!("timeout {text}"), "").timeout, seconds);
    }
    for text in ["0", "000", "2147483648", "99999999999999999999999999"] {
        assert!(
            error(&format!("timeout {text}")).contains(&format!(": timeout of {text} seconds\n")),
            "{text}"
        );
    }
    for text in ["-1", "1.5", "10s", "none", "0x10"] {
        assert!(error(&format!("timeout {text}")).contains(&format!(": wrong value `{text}`\n")), "{text}");
    }
}

#[test]
fn the_nbd_statement_is_global_or_in_a_node_section() {
    let nbd = |text: &str| config(text).nbd;
    assert_eq!(nbd(""), Path::new("/var/run/hast"));
    assert_eq!(nbd("nbd /n"), Path::new("/n"));
    assert_eq!(nbd("nbd /n nbd\n/m"), Path::new("/m"));
    assert_eq!(nbd("on a { nbd /a } on b { nbd /b } nbd /n"), Path::new("/a"));
    assert_eq!(nbd("on b { nbd /b }"), Path::new("/var/run/hast"));
    assert!(error("resource r { nbd /n").contains("unknown word `nbd`"));
    assert!(error("resource r { on a { nbd /n").contains("unknown word `nbd`"));
    assert!(error("nbd n").contains("`n` is not an absolute directory"));
}

#[test]
fn direct_reads_are_off_unless_the_file_or_the_resource_says_otherwise() {
    let both = |file: &str, resource: &str| with(file, resource, "").direct_reads;
    assert!(!both("", ""));
    assert!(both("direct-reads on", "") && both("", "direct-reads on") && both("#% direct-reads on\n", ""));
    assert!(!both("direct-reads on", "direct-reads off"));
    for (text, part) in [
        ("direct-reads", "ends"),
        ("direct-reads maybe", "wrong value `maybe`"),
        ("#% direct-reads on on", "`on` cannot stand here"),
        ("on a { direct-reads on", "`direct-reads`"),
    ] {
        assert!(error(text).contains(part), "{text}: {}", error(text));
    }
    let r = resource("resource direct-reads { on a { local /d remote direct-reads } }");
    assert_eq!((r.name.as_str(), r.remote_text()), ("direct-reads", "direct-reads"));
}

#[test]
fn a_silence_and_a_device_are_global_or_a_resources() {
    let both = |file: &str, resource: &str| {
        let r = with(file, resource, "");
        (r.peer_timeout, r.device)
    };
    assert_eq!(both("", ""), (5, KernelDevice::Auto));
    assert_eq!(both("peer-timeout 1 device nbd", ""), (1, KernelDevice::Nbd));
    assert_eq!(both("device nbd", "device ublk"), (5, KernelDevice::Ublk));
    assert_eq!(both("#% device ublk\n", ""), (5, KernelDevice::Ublk));
    assert_eq!(
        both("device none", "peer-timeout 2147483647 device auto"),
        (2_147_483_647, KernelDevice::Auto)
    );
    assert_eq!(both("#% peer-timeout 7\n#% device none\n", "\n#% device nbd\n"), (7, KernelDevice::Nbd));
    for text in ["on a { peer-timeout 5", "resource r { on a { device none", "on a {\n#% device none\n}"] {
        assert!(error(text).contains("`peer-timeout`") || error(text).contains("device"), "{text}");
    }
    for (text, part) in [
        ("#% peer-timeout 5 6", "`6` cannot stand here"),
        ("#% device auto }", "`}` cannot stand here"),
        ("peer-timeout x", "wrong value `x`"),
        ("device 1", "wrong value `1`"),
    ] {
        assert!(error(text).contains(part), "{text}: {}", error(text));
    }
    // None is reserved.
    let r = resource(
        "device none resource device { name peer-timeout on device { } on a { local auto remote nbd } }",
    );
    assert_eq!((r.name.as_str(), r.provname.as_str(), r.remote_text()), ("device", "peer-timeout", "nbd"));
    assert_eq!(r.localpath, Path::new("auto"));
}

#[test]
fn nbd_is_not_a_reserved_word() {
    let r =
        resource("nbd /nbd resource nbd { name nbd on nbd { } on a { local nbd remote nbd source nbd } }");
    assert_eq!((r.name.as_str(), r.provname.as_str(), r.remote_text()), ("nbd", "nbd", "nbd"));
    assert_eq!(r.localpath, Path::new("nbd"));
    assert_eq!(config("on nbd { } pidfile nbd").pidfile, Path::new("nbd"));
}

#[test]
fn extension_lines_hide_statements_from_the_reference() {
    let nbd = |text: &str| config(text).nbd;
    assert_eq!(nbd("#% nbd /n"), Path::new("/n"));
    assert_eq!(nbd("timeout 5\n \t#%\t  nbd /n\t# where\r\ntimeout 6"), Path::new("/n"));
    assert_eq!(nbd("on a {\n#% nbd /n\n}"), Path::new("/n"));
    assert_eq!(nbd("on b {\n#% nbd /n\n}"), Path::new("/var/run/hast"));
    for comment in [
        "#%nbd /n",
        "# % nbd /n",
        "##% nbd /n",
        "#% nbds /n",
        "#% NBD /n",
        "#% timeout 0",
        "timeout 5 #% nbd /n",
        "#%",
    ] {
        assert_eq!(nbd(comment), Path::new("/var/run/hast"), "{comment}");
    }
    for (text, problem) in [
        ("#% nbd\n/n", "the extension line ends here"),
        ("#% nbd", "the extension line ends here"),
        ("#% nbd /n }", "`}` cannot stand here"),
        ("#% nbd /n nbd /m", "`nbd` cannot stand here"),
        ("#% nbd on", "`on` is a reserved word"),
        ("resource\n#% nbd /n\n{ }", "the extension line `#% nbd` cannot stand here"),
        ("on a\n#% nbd /n\n{ }", "the extension line `#% nbd` cannot stand here"),
        ("timeout\n#% nbd /n\n5", "the extension line `#% nbd` cannot stand here"),
        ("resource r {\n#% nbd /n\n}", "the extension line `#% nbd` cannot stand here"),
        ("resource r { on a {\n#% nbd /n\n} }", "the extension line `#% nbd` cannot stand here"),
    ] {
        assert!(error(text).contains(&format!(": {problem}\n")), "{text}: {}", error(text));
    }
}

#[test]
fn nbd_sockets_have_a_path() {
    let limit = if cfg!(target_os = "freebsd") { 103 } else { 107 };
    let fits = "n".repeat(limit - "/n/.sock".len());
    assert_eq!(with("nbd /n", "", &format!("name {fits}")).provname, fits);
    let text = with_text("nbd /n", &format!("name n{fits}"));
    assert!(
        error(&text).contains(&format!(".sock has {} bytes, this system takes at most {limit}\n", limit + 1))
    );
    assert_eq!(with("", "", "name vm/disk0").provname, "vm/disk0");
    for name in ["..", "../r", "a/../r", "/r", "r/", "a//r", "./r"] {
        let text = with_text("", &format!("name {name}"));
        assert!(error(&text).contains("component and cannot become a socket path"), "{name}");
    }
    // Without a `name` it is the resource's own.
    let text = format!("resource {} {{ on a {{ local /d remote b }} }}", "n".repeat(254));
    assert!(error(&text).contains("hast.conf:1:10: resource nnn"));
}

fn with_text(global: &str, node: &str) -> String {
    format!("{global}\nresource r {{ on a {{ local /d remote b {node} }} }}")
}

#[test]
fn the_same_file_serves_both_nodes() {
    let text = "
        on a { listen 10.0.0.1 } on b { listen 10.0.0.2 }
        resource r { on a { local /dev/a remote b } on b { local /dev/b remote a } }";
    for (name, listen, local, remote) in [("a", "10.0.0.1", "/dev/a", "b"), ("b", "10.0.0.2", "/dev/b", "a")]
    {
        let config = parse(text, "hast.conf", &node(name)).unwrap();
        assert_eq!(texts(&config.listen), [listen]);
        assert_eq!(config.resources[0].localpath, Path::new(local));
        assert_eq!(config.resources[0].remote_text(), remote);
    }
}

#[test]
fn other_nodes_values_are_checked_too() {
    for text in [
        "on b { listen tcp7://x }",
        "on b { control : }",
        "resource r { on b { remote [::1",
        "resource r { on b { source a:0",
        "resource r { on b { metaflush maybe",
        "on b { nbd relative }",
    ] {
        error(text);
    }
}

/// Where devices are GEOM Gate's, NBD has to be asked for; elsewhere it is what there is.
#[test]
fn nbd_sockets_appear_where_the_file_or_the_system_says() {
    let by_default = config("");
    let directory = (!cfg!(target_os = "freebsd")).then(|| Path::new(DEFAULT_NBD_DIRECTORY));
    assert_eq!((by_default.nbd_directory(), by_default.nbd_is_default), (directory, true));
    for text in ["nbd /n", "#% nbd /n", "on a { nbd /n }"] {
        let asked_for = config(text);
        assert_eq!((asked_for.nbd_directory(), asked_for.nbd_is_default), (Some(Path::new("/n")), false));
    }
}

//! How each kind of error is shown, word by word: file, line, column, the line, a caret and what was
//! expected (spec conf.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::error;

/// The message without the indentation of the test's source. `|` begins a line.
fn lines(snapshot: &str) -> String {
    let lines: Vec<&str> = snapshot.lines().filter_map(|line| line.trim_start().strip_prefix('|')).collect();
    lines.join("\n")
}

macro_rules! shows {
    ($($name:ident: $text:expr => $snapshot:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(error($text), lines($snapshot));
        }
    )*};
}

shows! {
    unknown_word: "timeout 5\nreplicaton async\n" => "
        |hast.conf:2:1: unknown word `replicaton`
        |2 | replicaton async
        |  | ^^^^^^^^^^
        |expected `control`, `pidfile`, `listen`, `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `nbd`, `on` or `resource`";

    unknown_word_in_a_resource: "resource r {\n\tlokal /d\n}\n" => "
        |hast.conf:2:2: unknown word `lokal`
        |2 | \tlokal /d
        |  | \t^^^^^
        |expected `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `name`, `local`, `on` or `}`";

    statement_of_another_scope: "resource r {\n  on a {\n    timeout 5\n" => "
        |hast.conf:3:5: `timeout` cannot stand here
        |3 |     timeout 5
        |  |     ^^^^^^^
        |expected `name`, `local`, `remote`, `source`, `metaflush` or `}`";

    nested_on: "on a { on b { } }" => "
        |hast.conf:1:8: `on` cannot stand here
        |1 | on a { on b { } }
        |  |        ^^
        |expected `control`, `listen`, `pidfile`, `nbd` or `}`";

    wrong_value: "replication quick # or so" => "
        |hast.conf:1:13: wrong value `quick`
        |1 | replication quick # or so
        |  |             ^^^^^
        |expected `fullsync`, `memsync` or `async`";

    wrong_checksum: "checksum md5" => "
        |hast.conf:1:10: wrong value `md5`
        |1 | checksum md5
        |  |          ^^^
        |expected `none`, `crc32` or `sha256`";

    wrong_compression: "compression on" => "
        |hast.conf:1:13: wrong value `on`
        |1 | compression on
        |  |             ^^
        |expected `none`, `hole` or `lzf`";

    wrong_metaflush: "metaflush {" => "
        |hast.conf:1:11: `{` cannot stand here
        |1 | metaflush {
        |  |           ^
        |expected `on` or `off`";

    timeout_of_nothing: "timeout 0" => "
        |hast.conf:1:9: timeout of 0 seconds
        |1 | timeout 0
        |  |         ^
        |expected a number of seconds from 1 to 2147483647";

    timeout_that_is_no_number: "timeout -20" => "
        |hast.conf:1:9: wrong value `-20`
        |1 | timeout -20
        |  |         ^^^
        |expected a number of seconds from 1 to 2147483647";

    reserved_word_as_name: "resource local {\n" => "
        |hast.conf:1:10: `local` is a reserved word
        |1 | resource local {
        |  |          ^^^^^
        |expected a resource name";

    number_as_name: "resource 0 {\n" => "
        |hast.conf:1:10: `0` is a number
        |1 | resource 0 {
        |  |          ^
        |expected a resource name";

    missing_opening_brace: "resource r\n\tlocal /d\n" => "
        |hast.conf:2:2: `local` cannot stand here
        |2 | \tlocal /d
        |  | \t^^^^^
        |expected `{`";

    missing_closing_brace: "resource r {\n\ton a { local /d }\n\n# end\n" => "
        |hast.conf:2:19: the file ends inside the section opened at line 1
        |2 | \ton a { local /d }
        |  | \t                 ^
        |expected `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `name`, `local`, `on` or `}`";

    missing_brace_before_the_next_resource: "resource r {\n\ton a { local /d }\nresource q {\n" => "
        |hast.conf:3:1: `resource` cannot stand here
        |3 | resource q {
        |  | ^^^^^^^^
        |expected `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `name`, `local`, `on` or `}`";

    brace_too_many: "on a {\n} }" => "
        |hast.conf:2:3: `}` cannot stand here
        |2 | } }
        |  |   ^
        |expected `control`, `pidfile`, `listen`, `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `nbd`, `on` or `resource`";

    end_of_file_for_a_value: "pidfile" => "
        |hast.conf:1:8: the file ends here
        |1 | pidfile
        |  |        ^
        |expected a path";

    node_name: "on {" => "
        |hast.conf:1:4: `{` cannot stand here
        |1 | on {
        |  |    ^
        |expected a node name";

    exec_none: "exec none" => "
        |hast.conf:1:6: `none` is a reserved word
        |1 | exec none
        |  |      ^^^^
        |expected a path";

    remote_value: "resource r { on a { remote } }" => "
        |hast.conf:1:28: `}` cannot stand here
        |1 | resource r { on a { remote } }
        |  |                            ^
        |expected an address or `none`";

    source_value: "resource r { on a { source none } }" => "
        |hast.conf:1:28: `none` is a reserved word
        |1 | resource r { on a { source none } }
        |  |                            ^^^^
        |expected an address to connect from";

    control_value: "control on" => "
        |hast.conf:1:9: `on` is a reserved word
        |1 | control on
        |  |         ^^
        |expected an address of the control socket";

    listen_value: "listen\n}" => "
        |hast.conf:2:1: `}` cannot stand here
        |2 | }
        |  | ^
        |expected an address to listen on";

    unknown_protocol: "listen http://10.0.0.1" => "
        |hast.conf:1:8: unknown protocol `http`, known are tcp, tcp4, tcp6, uds and unix
        |1 | listen http://10.0.0.1
        |  |        ^^^^^^^^^^^^^^^
        |expected [protocol://]host[:port] or a socket path";

    wrong_port: "listen 10.0.0.1:99999" => "
        |hast.conf:1:8: `99999` is not a port, ports are 1 to 65535
        |1 | listen 10.0.0.1:99999
        |  |        ^^^^^^^^^^^^^^
        |expected [protocol://]host[:port] or a socket path";

    wrong_family: "listen tcp4://::1" => "
        |hast.conf:1:8: ::1 is not an IPv4 address
        |1 | listen tcp4://::1
        |  |        ^^^^^^^^^^
        |expected [protocol://]host[:port] or a socket path";

    name_too_long: &format!("resource {} {{", "n".repeat(255)) => &format!("
        |hast.conf:1:10: the resource name has 255 bytes, at most 254 are possible
        |1 | resource {}...
        |  |          {}
        |expected a shorter resource name", "n".repeat(111), "^".repeat(111));

    resource_twice: "resource r { local /d on a { remote b } }\n\nresource r {" => "
        |hast.conf:3:10: resource r is given twice, first at line 1
        |3 | resource r {
        |  |          ^
        |expected another resource name";

    no_section_for_this_node: "resource r {\n\ton b { }\n\ton c { }\n}" => "
        |hast.conf:1:10: resource r has no `on` section for this node, only for b, c
        |1 | resource r {
        |  |          ^
        |expected `on a`";

    no_section_at_all: "resource r { }" => "
        |hast.conf:1:10: resource r has no `on` section for this node
        |1 | resource r { }
        |  |          ^
        |expected `on a`";

    no_remote: "resource r {\n\tlocal /d\n\ton a { }\n}" => "
        |hast.conf:1:10: resource r has no `remote` for this node
        |1 | resource r {
        |  |          ^
        |expected `remote <address>` or `remote none` in the `on` section";

    no_local: "resource r { on a { remote b } }" => "
        |hast.conf:1:10: resource r has no `local`
        |1 | resource r { on a { remote b } }
        |  |          ^
        |expected `local <path>` in the resource or in its `on` section";

    nbd_directory: "nbd run/hast" => "
        |hast.conf:1:5: `run/hast` is not an absolute directory
        |1 | nbd run/hast
        |  |     ^^^^^^^^
        |expected a directory for NBD sockets";

    nbd_socket_out_of_its_directory: "resource r {\n\tname ../r\n\tlocal /d on a { remote b } }" => "
        |hast.conf:2:7: resource r: provider name ../r has an empty, `.` or `..` component and cannot become a socket path
        |2 | \tname ../r
        |  | \t     ^^^^
        |expected another `name` or another `nbd` directory";

    extension_line_ends: "timeout 5\n  #% nbd\n/n" => "
        |hast.conf:2:9: the extension line ends here
        |2 |   #% nbd
        |  |         ^
        |expected a directory for NBD sockets";

    extension_line_goes_on: "#% nbd /n /m" => "
        |hast.conf:1:11: `/m` cannot stand here
        |1 | #% nbd /n /m
        |  |           ^^
        |expected the end of the extension line";

    extension_out_of_place: "resource r {\n#% nbd /n\n}" => "
        |hast.conf:2:4: the extension line `#% nbd` cannot stand here
        |2 | #% nbd /n
        |  |    ^^^
        |expected `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `name`, `local`, `on` or `}`";

    device_of_another_kind: "resource r {\n#% device loop\n" => "
        |hast.conf:2:11: wrong value `loop`
        |2 | #% device loop
        |  |           ^^^^
        |expected `auto`, `nbd`, `ublk` or `none`";

    device_without_a_word: "#% device\nnbd /n" => "
        |hast.conf:1:10: the extension line ends here
        |1 | #% device
        |  |          ^
        |expected `auto`, `nbd`, `ublk` or `none`";

    one_disk_for_two: "resource r { local /d on a { remote b } }\nresource s { on a { local //d/. remote b } }" => "
        |hast.conf:2:10: resource s has the same `local` as resource r, /d
        |2 | resource s { on a { local //d/. remote b } }
        |  |          ^
        |expected a disk or file for each resource";

    one_device_for_two: "resource r { local /d on a { remote b } }\nresource s { local /e name r on a { remote b } }" => "
        |hast.conf:2:10: resource s has the same provider name as resource r, `r`
        |2 | resource s { local /e name r on a { remote b } }
        |  |          ^
        |expected another `name`";

    replicated_to_itself: "listen 10.0.0.1\nresource r { local /d on a { remote tcp4://10.0.0.1 } }" => "
        |hast.conf:2:10: resource r: its `remote` tcp4://10.0.0.1 is this node itself
        |2 | resource r { local /d on a { remote tcp4://10.0.0.1 } }
        |  |          ^
        |expected the address of the other node in the `on` section for this node";

    silence_of_no_time: "peer-timeout 0" => "
        |hast.conf:1:14: timeout of 0 seconds
        |1 | peer-timeout 0
        |  |              ^
        |expected a number of seconds from 1 to 2147483647";

    columns_count_characters: "# é\n“timeout” nought" => "
        |hast.conf:2:11: wrong value `nought`
        |2 | “timeout” nought
        |  |           ^^^^^^
        |expected a number of seconds from 1 to 2147483647";

    windows_line_ends: "timeout 5\r\ntimeout 0\r\n" => "
        |hast.conf:2:9: timeout of 0 seconds
        |2 | timeout 0
        |  |         ^
        |expected a number of seconds from 1 to 2147483647";

    line_numbers_of_two_digits: &format!("{}}}", "\n".repeat(99)) => "
        |hast.conf:100:1: `}` cannot stand here
        |100 | }
        |    | ^
        |expected `control`, `pidfile`, `listen`, `replication`, `checksum`, `compression`, `timeout`, `exec`, `metaflush`, `peer-timeout`, `device`, `direct-reads`, `nbd`, `on` or `resource`";
}

#[test]
fn socket_paths_too_long() {
    let limit = if cfg!(target_os = "freebsd") { 103 } else { 107 };
    let path = format!("/{}", "s".repeat(limit));
    assert_eq!(
        error(&format!("control {path}")),
        format!(
            "hast.conf:1:9: the unix socket path has {} bytes, this system takes at most {limit}\n\
             1 | control {path}\n\x20 |         {}\n\
             expected [protocol://]host[:port] or a socket path",
            limit + 1,
            "^".repeat(limit + 1)
        )
    );
    let name = "n".repeat(limit + 1 - "/nbd/.sock".len());
    assert_eq!(
        error(&format!("nbd /nbd\nresource r {{ local /d on a {{ remote b\nname {name}\n}} }}")),
        format!(
            "hast.conf:3:6: resource r: NBD socket path /nbd/{name}.sock has {} bytes, this system takes at most {limit}\n\
             3 | name {name}\n\x20 |      {}\n\
             expected another `name` or another `nbd` directory",
            limit + 1,
            "^".repeat(name.len())
        )
    );
}

/// A file may be wrong for one node and right for the other, because their sections differ.
#[test]
fn only_this_nodes_resources_are_compared() {
    let text = "resource r { on a { local /d remote b } on b { local /d remote a } }
                resource s { on a { local /e remote b } on b { local /d remote a } }";
    hast_conf::parse(text, "f", &common::node("a")).unwrap();
    let error = hast_conf::parse(text, "f", &common::node("b")).unwrap_err();
    assert!(error.to_string().contains("resource s has the same `local` as resource r"), "{error}");
    // The own name behind the default addresses is this node; on another port it may be somebody else.
    let own = |remote: &str| {
        let text = format!("resource r {{ on a {{ local /d remote {remote} }} }}");
        hast_conf::parse(&text, "f", &common::node("a")).map(drop).map_err(|error| error.to_string())
    };
    assert!(own("a").unwrap_err().contains("its `remote` a is this node itself"));
    assert_eq!((own("a:99"), own("b")), (Ok(()), Ok(())));
    // Of a node that is not this host no address is known.
    assert_eq!(own("127.0.0.1"), Ok(()));
}

#[test]
fn an_error_is_matched_by_its_kind() {
    let error = hast_conf::parse("timeout 0", "f", &common::node("a")).unwrap_err();
    let hast_conf::ConfError::Invalid(invalid) = error else { panic!("{error}") };
    assert_eq!((invalid.file.as_str(), invalid.line, invalid.column), ("f", 1, 9));
    assert_eq!(invalid.problem, hast_conf::Problem::Timeout("0".into()));
}

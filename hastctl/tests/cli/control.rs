//! Talking to a daemon: a stand-in that plays what the original's answered.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use hast_net::control::{Connection, ConnectionState, Entry, Facts, Reloaded, Reply, ResourceStatus};

use crate::captured::{between, block, bytes, directory, json, masked, names, text};
use crate::program::{Node, Ran, words};

/// A daemon that takes one request and answers it with fixed bytes.
struct Daemon {
    thread: JoinHandle<Vec<u8>>,
}

impl Daemon {
    fn on(node: &Node, answer: Vec<u8>) -> Daemon {
        let listener = UnixListener::bind(node.path("a.ctl")).unwrap();
        Daemon::listening(listener, answer)
    }

    fn listening(listener: UnixListener, answer: Vec<u8>) -> Daemon {
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 5];
            stream.read_exact(&mut request).unwrap();
            let length = u32::from_le_bytes(request[1..].try_into().unwrap()) as usize;
            request.resize(5 + length, 0);
            stream.read_exact(&mut request[5..]).unwrap();
            stream.write_all(&answer).unwrap();
            // The client has nothing more to say, and hears that we neither.
            stream.shutdown(Shutdown::Write).unwrap();
            match stream.read(&mut [0]) {
                Ok(0) => {}
                // It has not read all of an answer that it did not understand.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                more => panic!("the client goes on with {more:?}"),
            }
            request
        });
        Daemon { thread }
    }

    /// The request that it got.
    fn request(self) -> Vec<u8> {
        self.thread.join().unwrap()
    }
}

fn node() -> Node {
    Node::new(
        "a",
        "on a { control uds:///hast/a.ctl }\nresource test { on a { local /hast/a.img remote none } }\n",
    )
}

/// Lets a daemon answer `words` with `answer`.
fn answered(words: &[&str], answer: Vec<u8>) -> Ran {
    let node = node();
    let daemon = Daemon::on(&node, answer);
    let ran = node.hastctl(words);
    daemon.request();
    ran
}

/// What the original would say, when what follows it on standard error are warnings, one for each of `errors`.
fn without_words(mut ran: Ran, errors: usize) -> Ran {
    let lines: Vec<String> = ran.stderr.split_inclusive('\n').map(str::to_owned).collect();
    let (words, plain): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .partition(|line| line.starts_with("[WARNING] ") && !line.contains("Received error"));
    assert_eq!(words.len(), errors, "{words:?}");
    ran.stderr = plain.concat();
    ran
}

fn frame(list: &[u8]) -> Vec<u8> {
    let mut frame = vec![2];
    frame.extend_from_slice(&u32::try_from(list.len()).unwrap().to_le_bytes());
    frame.extend_from_slice(list);
    frame
}

#[test]
fn captured_commands_send_and_print_what_the_original_does() {
    let mut tested = 0;
    for name in names("control", "control-", ".txt") {
        if name.starts_with("control-raw-") {
            continue;
        }
        let description = text("control", &format!("{name}.txt"));
        let command = json("control", &format!("{name}.json"))["cmd"].as_str().unwrap().to_owned();
        let node_name = between(&description, "\nNode ", ":");
        let node = Node::new(node_name, &block(&description, "hast.conf:"));
        let listener = UnixListener::bind(node.path(&format!("{node_name}.ctl"))).unwrap();
        let daemon = Daemon::listening(listener, bytes("control", &format!("{name}.d2c.bin")));

        let mut line = words(&command);
        let config = line.iter().position(|word| *word == "-c").unwrap();
        line.drain(config..config + 2);
        let ran = node.hastctl(&line);

        let request = daemon.request();
        let captured = bytes("control", &format!("{name}.c2d.bin"));
        assert_eq!(request[..5], captured[..5], "{name}");
        assert_eq!(masked(&request[5..]), masked(&captured[5..]), "{name}");
        assert_eq!(request[5..], masked(&request[5..]), "{name}: padding is not zero");
        let expected = Ran {
            status: between(&description, "\nhastctl exit status ", "\n").parse().unwrap(),
            stdout: block(&description, "hastctl stdout:"),
            stderr: block(&description, "hastctl stderr:"),
        };
        // What ours adds are words for each error.
        let errors = expected.stdout.matches("\tERR").count()
            + expected.stdout.matches("\n  error: ").count()
            + expected.stderr.matches("Received error").count();
        assert_eq!(without_words(ran, errors), expected, "{name}: {command}");
        tested += 1;
    }
    assert_eq!(tested, 15, "captures in {}", directory("control").display());
}

#[test]
fn role_changes_show_with_debug_levels() {
    let changed = bytes("control", "control-role-primary-a.d2c.bin");
    let was = "init";
    let line = |level: u8, text: &str| format!("[DEBUG][{level}] {text}\n");
    let ran = answered(&["role", "-d", "primary", "disk0", "second", "third"], changed);
    let expected: String = ["disk0", "second", "third"]
        .iter()
        .map(|name| line(1, &format!("[{name}] Role changed from {was} to primary.")))
        .collect();
    assert_eq!(ran, Ran { status: 0, stdout: expected, stderr: String::new() });

    let unchanged = bytes("control", "control-role-primary-again.d2c.bin");
    let ran = answered(&["role", "-d", "primary", "disk0"], unchanged.clone());
    assert_eq!(ran, Ran { status: 0, stdout: String::new(), stderr: String::new() });
    let ran = answered(&["role", "-dd", "primary", "disk0"], unchanged);
    assert_eq!(ran.stdout, line(2, "[disk0] Role unchanged (primary)."));
}

#[test]
fn an_error_for_the_whole_request_is_70() {
    for (name, error) in [("bad-cmd", 4), ("bad-cmd-all", 4), ("bad-role", 2), ("no-resource", 2)] {
        let reply = bytes("control", &format!("control-raw-{name}.d2c.bin"));
        let ran = answered(&["status"], reply);
        let stderr = format!("[ERROR] Error {error} received from hastd.\n");
        assert_eq!(without_words(ran, 1), Ran { status: 70, stdout: String::new(), stderr }, "{name}");
    }
}

#[test]
fn the_first_failed_resource_decides_the_status() {
    let error = |name: &str, error| Entry::error(name.to_owned(), error);
    let fine =
        |name: &str| Entry::RoleWas { name: name.to_owned(), role: "init".to_owned(), peer_behind: false };
    let reply = |entries| frame(&Reply::Entries(entries).encode());
    let two = || reply(vec![fine("x"), error("y", 12), error("z", 1)]);
    let ran = answered(&["role", "init", "x", "y", "z"], two());
    let stderr = "[WARNING] [y] Received error 12 from hastd.\n[WARNING] [z] Received error 1 from hastd.\n";
    assert_eq!(without_words(ran, 2), Ran { status: 12, stdout: String::new(), stderr: stderr.to_owned() });
    let ran = answered(&["list", "y", "z"], reply(vec![error("y", 12), error("z", 1)]));
    assert_eq!((ran.status, ran.stdout.as_str()), (12, "y:\n  error: 12\nz:\n  error: 1\n"));
    let ran = answered(&["status", "y", "z"], reply(vec![error("z", 1), error("y", 12)]));
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (1, "Name\tStatus\t Role\t\tComponents\nz\tERR1\ny\tERR12\n")
    );
    // Eight bits of an error make no success.
    assert_eq!(answered(&["status"], reply(vec![error("y", 256)])).status, 1);
    assert_eq!(answered(&["status"], reply(vec![error("y", -1)])).status, 255);
}

#[test]
fn an_unknown_resource_is_explained() {
    let unknown = |name: &str| frame(&Reply::Entries(vec![Entry::error(name, 1)]).encode());
    for command in [&["status"][..], &["list"], &["role", "primary"], &["compare"]] {
        let ran = answered(&[command, &["tset"]].concat(), unknown("tset"));
        assert_eq!(ran.status, 1, "{ran:?}");
        let last = "[WARNING] [tset] hastd does not know this resource. Did you mean test?";
        assert_eq!(ran.stderr.lines().last(), Some(last));
        // It is in the configuration, and hastd has not read that.
        let ran = answered(&[command, &["test"]].concat(), unknown("test"));
        let last = ran.stderr.lines().last().unwrap();
        assert!(last.starts_with("[WARNING] [test] hastd does not know this resource, but "), "{ran:?}");
        assert!(last.contains("reload") || last.contains("SIGHUP"), "{ran:?}");
    }
}

#[test]
fn a_reload_says_what_came_of_it() {
    let reloaded = |status, lines: &[&str]| {
        let lines = lines.iter().map(ToString::to_string).collect();
        answered(&["reload"], frame(&Reply::Reloaded(Reloaded { status, lines }).encode()))
    };
    let ran = reloaded(0, &["Resource a added.", "Resource b\u{1b}[2J restarted."]);
    let stdout = "Resource a added.\nResource b?[2J restarted.\n".to_owned();
    assert_eq!(ran, Ran { status: 0, stdout, stderr: String::new() });
    let ran = reloaded(78, &["hast.conf:1:1: wrong\n1 | x", "Configuration not reloaded."]);
    let stderr =
        "[ERROR] hast.conf:1:1: wrong\n[ERROR] 1 | x\n[ERROR] Configuration not reloaded.\n".to_owned();
    assert_eq!(ran, Ran { status: 78, stdout: String::new(), stderr });
    // An original's daemon, to which it is an unknown command, and one that says something else.
    let ran = answered(&["reload"], frame(&Reply::Error(4).encode()));
    assert_eq!(ran.status, 70);
    assert!(ran.stderr.starts_with("[ERROR] Error 4 received from hastd.\n"), "{ran:?}");
    assert!(ran.stderr.contains("SIGHUP"), "{ran:?}");
    assert_eq!(answered(&["reload"], two_resources(None)).status, 69);
    // A file that hastctl cannot read hastd need not be asked about.
    let node = Node::new("a", "resource {\n");
    let ran = node.hastctl(&["reload"]);
    assert_eq!(ran.status, 78);
    assert!(ran.stderr.contains("hastd was not asked"), "{ran:?}");
}

/// Programs that use a device which goes with the daemon are named before it goes.
#[test]
fn stop_names_who_uses_devices() {
    let node = Node::new(
        "a",
        "control /hast/a.ctl\npidfile /hast/hastd.pid\nnbd /hast/nbd\n\
         resource one { on a { local /hast/a.img remote none } }\n",
    );
    std::fs::create_dir(node.path("nbd")).unwrap();
    std::fs::write(node.path("nbd/one.sock"), "").unwrap();
    let mut hastd = crate::stop::locking(&node, "exec sleep 60");
    std::fs::write(node.path("hastd.pid"), hastd.id().to_string()).unwrap();
    let facts = Facts { clients: vec![std::process::id()], ..Facts::default() };
    let mut entry = decoded(&two_resources(Some(facts)));
    entry.role = "primary".to_owned();
    let entries = vec![Entry::Status { name: "one".to_owned(), status: Box::new(entry) }];
    let daemon = Daemon::on(&node, frame(&Reply::Entries(entries).encode()));
    let ran = node.hastctl(&["stop"]);
    daemon.request();
    assert_eq!((ran.status, ran.stdout.as_str()), (0, ""), "{ran:?}");
    let expected = format!("[WARNING] [one] The device is in use: NBD client {}", std::process::id());
    assert!(ran.stderr.starts_with(&expected), "{ran:?}");
    hastd.wait().unwrap();
}

/// The first resource of an answer.
fn decoded(answer: &[u8]) -> ResourceStatus {
    let list = hast_format::nv::List::parse(&answer[5..]).unwrap();
    match Reply::decode(&list) {
        Ok(Reply::Entries(mut entries)) => match entries.remove(0) {
            Entry::Status { status, .. } => *status,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_without_resources_prints_nothing() {
    let nobody = frame(&Reply::Entries(Vec::new()).encode());
    for answer in [frame(&[]), nobody] {
        for line in [&["status"][..], &["list"], &["role", "init", "all"]] {
            let ran = answered(line, answer.clone());
            assert_eq!(ran, Ran { status: 0, stdout: String::new(), stderr: String::new() }, "{line:?}");
        }
    }
}

#[test]
fn a_connection_that_breaks_is_69() {
    let whole = bytes("control", "control-status-one.d2c.bin");
    for length in [0, 1, 4, 5, 6, whole.len() / 2, whole.len() - 1] {
        let node = node();
        let daemon = Daemon::on(&node, whole[..length].to_vec());
        let ran = node.hastctl(&["status", "second"]);
        daemon.request();
        let stderr = format!(
            "[ERROR] cannot receive reply from hastd via uds://{}: Transport endpoint is not connected.\n",
            node.path("a.ctl").display()
        );
        if cfg!(target_os = "linux") {
            assert_eq!(ran, Ran { status: 69, stdout: String::new(), stderr }, "{length}");
        } else {
            assert_eq!(ran.status, 69);
        }
    }
}

#[test]
fn an_answer_that_is_none_is_69() {
    let with = |at: usize, byte: u8| {
        let mut answer = bytes("control", "control-status-one.d2c.bin");
        answer[at] = byte;
        answer
    };
    let oversized = [&[2][..], &(16_u32 << 20).wrapping_add(1).to_le_bytes(), &[0; 100]].concat();
    for (what, answer) in [
        ("version 3", with(0, 3)),
        ("unknown type", with(5, 0x7f)),
        ("no data", with(7, 0)),
        ("too large", oversized),
        ("text", b"HTTP/1.0 400 Bad request\r\n".to_vec()),
    ] {
        let ran = answered(&["list"], answer);
        assert_eq!((ran.status, ran.stdout.as_str()), (69, ""), "{what}: {ran:?}");
        assert!(
            ran.stderr.starts_with("[ERROR] cannot receive reply from hastd via uds://"),
            "{what}: {ran:?}"
        );
    }
}

#[test]
fn without_a_daemon_it_is_71() {
    let node = node();
    let refused = |reason: &str| Ran {
        status: 71,
        stdout: String::new(),
        stderr: format!(
            "[ERROR] Unable to connect to hastd via uds://{}: {reason}.\n",
            node.path("a.ctl").display()
        ),
    };
    for line in [&["status"][..], &["list", "test"], &["role", "primary", "test"]] {
        assert_eq!(node.hastctl(line), refused("No such file or directory"));
    }
    drop(UnixListener::bind(node.path("a.ctl")).unwrap());
    assert_eq!(node.hastctl(&["status"]), refused("Connection refused"));
}

/// A daemon that hangs: frozen, or waiting for a name service. A monitoring program is told so, and goes on.
#[test]
fn a_daemon_that_does_not_answer_is_75() {
    for line in [&["status"][..], &["role", "init", "test"]] {
        let node = node();
        let path = node.path("a.ctl");
        let _listener = UnixListener::bind(&path).unwrap();
        let stderr = format!(
            "[ERROR] hastd does not answer via uds://{}: nothing has come for 10 s.\n",
            path.display()
        );
        assert_eq!(node.hastctl(line), Ran { status: 75, stdout: String::new(), stderr }, "{line:?}");
    }
}

/// Nor does it wait at the door of one that takes no connection any more.
#[cfg(target_os = "linux")]
#[test]
fn a_daemon_that_takes_no_connection_is_75() {
    let node = node();
    let path = node.path("a.ctl");
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&socket2::SockAddr::unix(&path).unwrap()) {
            Ok(()) => waiting.push(socket),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let ran = node.hastctl(&["list"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (75, ""), "{ran:?}");
    assert!(ran.stderr.contains("does not answer"), "{ran:?}");
}

/// A change of roles may take long. While hastd answers other questions it is waited for, with a word.
#[test]
fn a_change_of_roles_is_waited_for_as_long_as_hastd_is_there() {
    let node = node();
    let listener = UnixListener::bind(node.path("a.ctl")).unwrap();
    let daemon = thread::spawn(move || {
        let receive = |stream: &mut std::os::unix::net::UnixStream| {
            let mut request = vec![0; 5];
            stream.read_exact(&mut request).unwrap();
            let length = u32::from_le_bytes(request[1..].try_into().unwrap()) as usize;
            request.resize(5 + length, 0);
            stream.read_exact(&mut request[5..]).unwrap();
        };
        let (mut role, _) = listener.accept().unwrap();
        receive(&mut role);
        // The question in between comes because there is no answer.
        let (mut status, _) = listener.accept().unwrap();
        receive(&mut status);
        status.write_all(&two_resources(None)).unwrap();
        let was =
            Entry::RoleWas { name: "test".to_owned(), role: "secondary".to_owned(), peer_behind: false };
        role.write_all(&frame(&Reply::Entries(vec![was]).encode())).unwrap();
    });
    let ran = node.hastctl(&["role", "init", "test"]);
    daemon.join().unwrap();
    assert_eq!((ran.status, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert!(ran.stderr.starts_with("[WARNING] hastd waits for "), "{ran:?}");
    assert!(ran.stderr.ends_with(" s at most.\n"), "{ran:?}");
}

#[test]
fn the_control_socket_may_be_a_tcp_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 57];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&bytes("control", "control-status-init-all.d2c.bin")).unwrap();
    });
    let node = Node::new("a", &format!("control tcp://127.0.0.1:{port}\n"));
    let ran = node.hastctl(&["status"]);
    daemon.join().unwrap();
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 4);
}

fn refused() -> Connection {
    let reason = "Resource not configured.".to_owned();
    Connection { state: ConnectionState::Refused, reason, since: 1_795_503_600 }
}

/// The answer to a status question about two resources, with facts about the first of them or none.
fn two_resources(facts: Option<Facts>) -> Vec<u8> {
    let status = |name: &str, facts: Option<Facts>| Entry::Status {
        name: name.to_owned(),
        status: Box::new(ResourceStatus {
            provname: name.to_owned(),
            localpath: format!("/dev/{name}"),
            remoteaddr: "tcp4://10.9.0.2".to_owned(),
            sourceaddr: None,
            replication: "memsync".to_owned(),
            checksum: "none".to_owned(),
            compression: "hole".to_owned(),
            role: "secondary".to_owned(),
            workerpid: 0,
            worker: None,
            connection: facts.as_ref().map(|_| refused()),
            facts,
        }),
    };
    frame(&Reply::Entries(vec![status("one", facts), status("two", None)]).encode())
}

#[test]
fn only_what_is_verbose_asks_for_facts_and_shows_them() {
    let marked = Facts {
        inconsistent_since: Some(1_795_503_600),
        inconsistent_by: "tcp4://10.9.0.1".to_owned(),
        stale_bytes: 65536,
        ..Facts::default()
    };
    let ask = |words: &[&str], facts: Option<Facts>| {
        let node = node();
        let daemon = Daemon::on(&node, two_resources(facts));
        let ran = node.hastctl(words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{words:?}");
        let request = daemon.request();
        let list = hast_format::nv::List::parse(&request[5..]).unwrap();
        (ran.stdout, list.u8("verbose"))
    };
    // A daemon that tells more than it was asked changes nothing.
    for words in [&["status"][..], &["list"]] {
        let (plain, asked) = ask(words, None);
        assert_eq!(asked, None);
        assert_eq!(ask(words, Some(marked.clone())), (plain, None));
    }
    let (text, asked) = ask(&["status", "-v"], Some(marked.clone()));
    let expected = "Name\tStatus\t Role\t\tComponents\tCondition\tConnection
one\t-        secondary      /dev/one\ttcp4://10.9.0.2\tinconsistent,stale,refused\trefused since 2026-11-24 07:00:00 UTC: \
                    Resource not configured.
two\t-        secondary      /dev/two\ttcp4://10.9.0.2\t-\t-
";
    assert_eq!((text.as_str(), asked), (expected, Some(1)));

    let (text, asked) = ask(&["list", "-v"], Some(marked));
    let (plain, _) = ask(&["list"], None);
    let (one, two) = plain.split_at(plain.find("two:").unwrap());
    let expected = format!(
        "{one}  connection: refused since 2026-11-24 07:00:00 UTC: Resource not configured.
  condition:
    inconsistent: since 2026-11-24 07:00:00 UTC, by tcp4://10.9.0.1
    target: no
    stale: 65536 (64KB)
    local disk: attached
    split-brain: no
    possibly behind: no
    other node: -
    synchronising: no
    to synchronise: 0 (0B)
{two}  connection: -
  condition: -
"
    );
    assert_eq!((text, asked), (expected, Some(1)));
}

#[test]
fn an_outdated_node_is_refused_with_a_hint_and_forced_on_request() {
    let refused = frame(&Reply::Entries(vec![Entry::error("test".to_owned(), 70)]).encode());
    let ask = |words: &[&str]| {
        let node = node();
        let daemon = Daemon::on(&node, refused.clone());
        let ran = node.hastctl(words);
        let request = daemon.request();
        (ran, hast_format::nv::List::parse(&request[5..]).unwrap().u8("force"))
    };
    let plain = "[WARNING] [test] Received error 70 from hastd.\n";
    let hint = "[WARNING] [test] Let the other node be primary or leave its role first, or give up what it has written and \
                this node has not with `hastctl role -f primary test'.\n";
    let ran = |stderr: String| Ran { status: 70, stdout: String::new(), stderr };
    assert_eq!(ask(&["role", "primary", "test"]), (ran(format!("{plain}{hint}")), None));
    assert_eq!(ask(&["role", "-f", "primary", "test"]), (ran(format!("{plain}{hint}")), Some(1)));
    // Of another role the number says something else.
    let (other, None) = ask(&["role", "init", "test"]) else { panic!() };
    assert!(other.stderr.contains("[WARNING] [test] The number stands for: "), "{other:?}");
    assert_eq!(without_words(other, 1), ran(plain.to_owned()));
}

#[test]
fn the_reason_for_a_refusal_is_shown() {
    let reason = Some("tcp4://10.9.0.1 is primary\nand connected".to_owned());
    let refused = Entry::Error { name: "test".to_owned(), error: 70, reason };
    let ran = answered(&["role", "init", "test"], frame(&Reply::Entries(vec![refused]).encode()));
    let stderr = "[WARNING] [test] Received error 70 from hastd.\n\
                  [WARNING] [test] tcp4://10.9.0.1 is primary?and connected.\n";
    assert_eq!(ran, Ran { status: 70, stdout: String::new(), stderr: stderr.to_owned() });
}

#[test]
fn a_node_that_cannot_be_primary_is_explained() {
    for (error, cause) in [(66, "The provider cannot be used"), (71, "The device cannot be created")] {
        let reply = frame(&Reply::Entries(vec![Entry::error("test".to_owned(), error)]).encode());
        let received = format!("[WARNING] [test] Received error {error} from hastd.\n");
        let ran = answered(&["role", "primary", "test"], reply.clone());
        let stderr = format!("{received}[WARNING] [test] {cause}: hastd's log says why. The role is init.\n");
        assert_eq!(ran, Ran { status: u8::try_from(error).unwrap().into(), stdout: String::new(), stderr });
        assert_eq!(without_words(answered(&["role", "init", "test"], reply), 1).stderr, received);
    }
}

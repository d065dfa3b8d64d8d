//! hast.conf: a text is a configuration that keeps every limit, or an error that shows a place in it.

use hast_conf::{ConfError, Config, Node, diff, parse};

/// One input is one file; what is not UTF-8 in it is replaced, as when a file is loaded.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut uuid = Node::named("b.example.org");
    uuid.uuid = Some("12345678-1234-1234-1234-123456789abc".into());
    let mut bare = Node::named("a");
    (bare.inet, bare.inet6) = (false, false);
    for node in [with_both(Node::named("a")), with_both(uuid), bare] {
        let once = parse(&text, "hast.conf", &node);
        match &once {
            Ok(config) => check(config),
            Err(error) => check_error(error, &text),
        }
        // Nothing but the text and the node decides.
        let twice = parse(&text, "hast.conf", &node);
        match (once, twice) {
            (Ok(once), Ok(twice)) => assert_eq!(once, twice),
            (Err(once), Err(twice)) => assert_eq!(once.to_string(), twice.to_string()),
            _ => panic!("a text is right or wrong, not both"),
        }
    }
}

fn with_both(mut node: Node) -> Node {
    (node.inet, node.inet6) = (true, true);
    node
}

fn check(config: &Config) {
    for (index, resource) in config.resources.iter().enumerate() {
        assert!((1..=254).contains(&resource.name.len()), "{}", resource.name);
        assert!((1..=254).contains(&resource.provname.len()), "{}", resource.provname);
        assert!((1..=2_147_483_647).contains(&resource.timeout));
        assert!(!resource.localpath.as_os_str().is_empty());
        assert!(!resource.remote_text().is_empty());
        let others = &config.resources[index + 1..];
        assert!(others.iter().all(|other| other.name != resource.name), "{} is there twice", resource.name);
        assert_eq!(config.resource(&resource.name), Some(resource));
    }
    let mut listen: Vec<_> = config.listen.iter().map(hast_conf::Address::endpoint).collect();
    listen.dedup();
    assert_eq!(listen.len(), config.listen.len(), "each endpoint once");
    assert!(diff(config, &config.listen, config).is_empty(), "nothing differs from itself");
}

fn check_error(error: &ConfError, text: &str) {
    assert_eq!(error.exit_code(), 78);
    let shown = error.to_string();
    let ConfError::Invalid(invalid) = error else { panic!("nothing was read from a disk: {shown}") };
    let lines = text.split('\n').count();
    assert!((1..=lines).contains(&invalid.line), "line {} of {lines}", invalid.line);
    let line = text.split('\n').nth(invalid.line - 1).unwrap();
    let characters = line.chars().count();
    assert!((1..=characters + 1).contains(&invalid.column), "column {} of {characters}", invalid.column);
    assert!(shown.lines().count() >= 4 && shown.contains('^') && shown.contains("expected "), "{shown}");
    assert!(shown.chars().count() < 3000, "an error fits on a screen");
    assert!(
        !shown.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')),
        "a terminal is not driven by a file: {shown:?}"
    );
}

//! Short ways to a configuration and to an error text.
#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

use hast_conf::{Config, Node, Resource, parse};

/// A host with both IP families whatever the machine of the test has.
pub fn node(name: &str) -> Node {
    with_families(name, true, true)
}

/// A host with these IP families.
pub fn with_families(name: &str, inet: bool, inet6: bool) -> Node {
    let mut node = Node::named(name);
    (node.inet, node.inet6) = (inet, inet6);
    node
}

/// A host with a UUID.
pub fn with_uuid(name: &str, uuid: &str) -> Node {
    let mut node = node(name);
    node.uuid = Some(uuid.to_owned());
    node
}

/// Node `a`'s configuration.
pub fn config(text: &str) -> Config {
    parse(text, "hast.conf", &node("a")).unwrap_or_else(|error| panic!("{error}"))
}

/// Node `a`'s error.
pub fn error(text: &str) -> String {
    match parse(text, "hast.conf", &node("a")) {
        Ok(config) => panic!("no error in {text:?}: {config:?}"),
        Err(error) => {
            assert_eq!(error.exit_code(), 78);
            error.to_string()
        }
    }
}

/// The one resource of the text.
pub fn resource(text: &str) -> Resource {
    let mut resources = config(text).resources;
    assert_eq!(resources.len(), 1);
    resources.remove(0)
}

/// A resource `r` with `body` and the least that node `a` needs.
pub fn with(global: &str, body: &str, node: &str) -> Resource {
    resource(&format!("{global}\nresource r {{ {body}\n on a {{ local /d remote b {node}\n }} }}"))
}

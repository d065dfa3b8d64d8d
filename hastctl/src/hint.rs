//! Second lines: what an error means in words, and which word may have been meant.
//!
//! The first line of an error is the original's, to the word; what is here follows it, on standard error.

use hast_conf::Config;
use hast_format::metadata::Role;
use hast_net::control;
use hast_net::errno::Errno;

use crate::exit;
use crate::human::printable;

/// How similar a word has to be, from 0 to 1, to be offered in place of another one.
const SIMILAR: f64 = 0.75;
/// Resources that are listed at most when none is similar.
const LISTED: usize = 8;

/// The one of `known` that `word` was most likely meant to be, if any is similar enough.
pub(crate) fn similar<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .map(|known| (strsim::normalized_damerau_levenshtein(&word, &known.to_lowercase()), known))
        .filter(|(likeness, _)| *likeness >= SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

/// The end of a sentence about a word that is unknown.
pub(crate) fn did_you_mean(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |meant| format!("; did you mean {}?", printable(meant)))
}

/// What may have been meant by the name of a resource that is unknown.
pub(crate) fn resource(config: &Config, name: &str) -> String {
    let known = || config.resources.iter().map(|resource| resource.name.as_str());
    if let Some(meant) = similar(name, known().filter(|known| *known != name)) {
        return format!("Did you mean {}?", printable(meant));
    }
    let mut names: Vec<String> = known().take(LISTED).map(printable).collect();
    if config.resources.len() > LISTED {
        names.push("...".to_owned());
    }
    match names.as_slice() {
        [] => "The configuration has no resources.".to_owned(),
        [one] => format!("The configuration has one resource, {one}."),
        _ => format!("The configuration has {}.", names.join(", ")),
    }
}

/// What hastd's error for one resource means. `role` is the role that it was to get.
pub(crate) fn error(config: &Config, name: &str, error: i16, role: Option<Role>) -> String {
    let promoted = role == Some(Role::Primary);
    if promoted && error == Errno::ESTALE.to_wire() {
        return format!(
            "Let the other node be primary or leave its role first, or give up what it has written and this node has not \
             with `hastctl role -f primary {}'.",
            printable(name)
        );
    }
    if promoted && error == i16::from(exit::NOINPUT) {
        return "The provider cannot be used: hastd's log says why. The role is init.".to_owned();
    }
    if promoted && error == i16::from(exit::OSERR) {
        return "The device cannot be created: hastd's log says why. The role is init.".to_owned();
    }
    if error != control::ERROR_NO_ENTRY {
        return request(error);
    }
    if config.resource(name).is_some() {
        return "hastd does not know this resource, but the configuration has it: `hastctl reload' lets hastd read that again."
            .to_owned();
    }
    format!("hastd does not know this resource. {}", resource(config, name))
}

/// What hastd's error for a whole request means.
pub(crate) fn request(error: i16) -> String {
    match error {
        control::ERROR_NO_ENTRY => "hastd does not know such a resource.".to_owned(),
        control::ERROR_INVALID => "hastd does not understand the request.".to_owned(),
        control::ERROR_NO_MEMORY => "hastd has no memory left.".to_owned(),
        control::ERROR_UNIMPLEMENTED => {
            "hastd does not know this command: it may be an older one, or the original.".to_owned()
        }
        error if error == Errno::ETIMEDOUT.to_wire() => {
            "The worker process does not answer: hastd's log may say why.".to_owned()
        }
        error => match Errno::from_wire(error) {
            Some(errno) => format!("The number stands for: {errno}. hastd's log may say more."),
            None => "hastd's log may say why.".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_conf::Node;

    fn config(names: &[&str]) -> Config {
        let text: String = names
            .iter()
            .map(|name| format!("resource {name} {{ on a {{ local /x/{name} remote none }} }}\n"))
            .collect();
        hast_conf::parse(&text, "hast.conf", &Node::named("a")).unwrap()
    }

    #[test]
    fn only_what_is_similar_is_offered() {
        let roles = || ["init", "primary", "secondary"].into_iter();
        assert_eq!(similar("Primary", roles()), Some("primary"));
        assert_eq!(similar("secondry", roles()), Some("secondary"));
        assert_eq!(similar("master", roles()), None);
        assert_eq!(similar("", roles()), None);
    }

    #[test]
    fn an_unknown_resource_is_compared_with_those_that_are_known() {
        assert_eq!(resource(&config(&["disk0", "mail"]), "disk1"), "Did you mean disk0?");
        assert_eq!(resource(&config(&["disk0", "mail"]), "web"), "The configuration has disk0, mail.");
        assert_eq!(resource(&config(&["disk0"]), "web"), "The configuration has one resource, disk0.");
        assert_eq!(resource(&config(&[]), "web"), "The configuration has no resources.");
        let many: Vec<String> = (0..9).map(|n| format!("resource-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(resource(&config(&many), "web").ends_with("resource-7, ...."));
    }

    #[test]
    fn every_number_has_words() {
        let config = config(&["disk0"]);
        assert!(error(&config, "disk0", 1, None).contains("hastctl reload"));
        assert!(error(&config, "disk1", 1, None).ends_with("Did you mean disk0?"));
        assert!(error(&config, "disk0", 70, Some(Role::Primary)).contains("role -f primary disk0"));
        assert!(error(&config, "disk0", 70, Some(Role::Init)).starts_with("The number stands for: "));
        for number in [i16::MIN, -1, 1, 2, 3, 4, 5, 60, 66, 71, i16::MAX] {
            assert!(request(number).ends_with('.'), "{number}");
        }
    }
}

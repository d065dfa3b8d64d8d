//! docs/troubleshooting.md has every message about something that is not as it should be, and no other.

use super::messages::{messages, repository, sources};

/// Shorter parts of messages could be anywhere.
const LEAST: usize = 8;

fn page() -> String {
    std::fs::read_to_string(repository().join("docs/troubleshooting.md")).expect("the page is there")
}

/// The lines of its displays.
fn displayed(page: &str) -> Vec<&str> {
    page.split("```\n").skip(1).step_by(2).flat_map(str::lines).collect()
}

#[test]
fn each_message_of_the_page_is_one_of_the_programs() {
    // hast-net and hast-conf have messages too.
    let sources: String = sources(&["hast-net", "hast-conf"])
        .into_iter()
        .map(|(_, text)| text.replace("\\\"", "\"").replace("\\'", "'"))
        .collect();
    let page = page();
    let displayed = displayed(&page);
    let parts = displayed.iter().flat_map(|message| message.split("..."));
    let unknown: Vec<&str> = parts
        .map(|part| part.trim_matches([' ', '.', ':']))
        .filter(|part| part.len() >= LEAST && !sources.contains(part))
        .collect();
    assert!(unknown.is_empty(), "nobody says what docs/troubleshooting.md has:\n{}", unknown.join("\n"));
}

#[test]
fn each_error_and_warning_is_on_the_page() {
    let page = page();
    let displayed = displayed(&page).join("\n");
    let messages = messages(&sources(&[]));
    assert!(messages.len() > 200, "{} messages alone were found in the sources", messages.len());
    let missing: Vec<String> = messages
        .iter()
        .filter(|message| message.fixed().len() >= LEAST && !displayed.contains(message.fixed()))
        .map(|message| format!("{}: {}", message.file.display(), message.text))
        .collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not have\n{}", missing.join("\n"));
}

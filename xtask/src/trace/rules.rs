//! Which rule of docs/spec is kept where, and what checks it: by the ids that code, tests and documents cite.
//!
//! Owns what counts as the definition of a rule, as a citation and as a check, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The pages that define rules, and the letters of those that have to be checked by something.
const SPEC: &str = "docs/spec";
/// U: what the original cannot do is no rule. T, X: stalls and attacks.
const CHECKED: &str = "ABCDGLMPRSTX";
/// Where there is something to cite from.
const TREES: [&str; 18] = [
    "benches",
    "docs",
    "fuzz",
    "hast-conf",
    "hast-engine",
    "hast-failover",
    "hast-format",
    "hast-ggate",
    "hast-log",
    "hast-nbd",
    "hast-net",
    "hast-provider",
    "hastctl",
    "hastd",
    "proofs",
    "sim",
    "tests",
    "xtask",
];

/// What a file is to a rule that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// The rule is kept here.
    Code,
    /// A test, a scene or a history for a mutant: it would notice.
    Check,
    /// A page of docs.
    Page,
}

/// A rule, and who names it.
#[derive(Debug, Default)]
struct Rule {
    title: String,
    places: BTreeMap<Use, BTreeSet<String>>,
}

/// All rules, and what is wrong.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: BTreeMap<Id, Rule>,
    /// Sentences, in order.
    pub(super) problems: Vec<String>,
}

/// A letter, a number and perhaps a part of it, `(a)`: in this order.
type Id = (char, u8, Option<char>);

fn name((letter, number, part): Id) -> String {
    part.map_or(format!("{letter}{number}"), |part| format!("{letter}{number}({part})"))
}

impl Rules {
    /// Of the project whose root this is.
    pub(super) fn of(root: &Path) -> io::Result<Rules> {
        let mut rules = Rules::default();
        let mut pages = BTreeSet::new();
        for path in files(&root.join("docs"))? {
            let text = fs::read_to_string(&path)?;
            pages.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            if path.parent() == Some(&root.join(SPEC)) {
                rules.define(&text);
            }
        }
        for tree in TREES {
            for path in files(&root.join(tree))? {
                let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                rules.read(&shown, &fs::read_to_string(&path)?, &pages);
            }
        }
        for (id, rule) in &rules.rules {
            let is_checked = rule.places.contains_key(&Use::Check);
            // Of a rule with parts each part is.
            let whole = id.2.is_none()
                && rules.rules.keys().any(|other| (other.0, other.1) == (id.0, id.1) && other.2.is_some());
            let open = ["(not mended", "(measured"].iter().any(|said| rule.title.contains(said));
            if CHECKED.contains(id.0) && !is_checked && !whole && !open {
                rules.problems.push(format!(
                    "{}: no test, scene or mutant names it: {}",
                    name(*id),
                    rule.title
                ));
            }
        }
        Ok(rules)
    }

    /// Takes in the rules that a page defines: bold text at the beginning of a line that begins with an id. Its title is its
    /// first sentence.
    fn define(&mut self, page: &str) {
        let mut lines = page.lines().peekable();
        while let Some(line) = lines.next() {
            let Some(text) = line.trim_start_matches("- ").strip_prefix("**") else { continue };
            let Some((id, rest)) = id_at(text) else { continue };
            let mut title = rest.replace("**", "").trim_start_matches(['.', ' ', ':']).to_owned();
            let goes_on =
                |line: &&str| !line.is_empty() && !line.starts_with("- ") && !line.starts_with("**");
            while !title.contains(". ")
                && let Some(more) = lines.next_if(goes_on)
            {
                title = format!("{title} {}", more.trim().replace("**", ""));
            }
            title.truncate(title.find(". ").map_or(title.len(), |end| end + 1));
            if self.rules.insert(id, Rule { title, ..Rule::default() }).is_some() {
                self.problems.push(format!("{}: defined twice", name(id)));
            }
        }
    }

    /// Takes in what a file cites.
    fn read(&mut self, file: &str, text: &str, pages: &BTreeSet<String>) {
        let mut kind = kind_of(file);
        for (number, line) in text.lines().enumerate() {
            if line.trim() == "#[cfg(test)]" {
                kind = Use::Check;
            }
            let Some(said) = said(file, line) else { continue };
            for id in ids(said) {
                match self.rules.get_mut(&id) {
                    Some(rule) => _ = rule.places.entry(kind).or_default().insert(file.to_owned()),
                    None => {
                        self.problems.push(format!("{file}:{}: {} is defined nowhere", number + 1, name(id)))
                    }
                }
            }
            for page in cited_pages(said).filter(|page| !pages.contains(page)) {
                self.problems.push(format!("{file}:{}: there is no page {page}", number + 1));
            }
        }
    }

    /// A table: rule, code, checks.
    pub(super) fn table(&self) -> String {
        let mut table = String::new();
        for (id, rule) in self.rules.iter().filter(|(id, _)| CHECKED.contains(id.0)) {
            let _ = writeln!(table, "{}  {}", name(*id), rule.title);
            for (what, kind) in [("kept", Use::Code), ("checked", Use::Check)] {
                let places = rule.places.get(&kind).into_iter().flatten();
                let places: Vec<&str> = places.map(String::as_str).collect();
                let _ = writeln!(table, "    {what:<8}{}", places.join(" "));
            }
        }
        table
    }
}

/// What a file is to the rules that it names.
fn kind_of(file: &str) -> Use {
    let test = file.contains("/tests/")
        || file.ends_with("tests.rs")
        || ["tests/", "fuzz/", "proofs/", "sim/seeds", "sim/src/scenes"]
            .iter()
            .any(|tree| file.starts_with(tree));
    if file.ends_with(".rs") || file.ends_with("mutants") {
        if test { Use::Check } else { Use::Code }
    } else {
        Use::Page
    }
}

/// The part of a line in which ids are citations: of code the comment and the names of rules.
fn said<'a>(file: &str, line: &'a str) -> Option<&'a str> {
    if file.ends_with("seeds/mutants") {
        return line.split_whitespace().next().filter(|word| *word != "#");
    }
    if !file.ends_with(".rs") {
        return Some(line);
    }
    let comment = line.find("//").and_then(|at| line.get(at..));
    let rule = ["Rule::", "Variant::"].iter().find_map(|of| line.find(of)).and_then(|at| line.get(at..));
    comment.or(rule)
}

/// The id at the beginning of a text, and what follows it. `C1d`, `C1(d)` and `C1 (d)` are one; so are `L9` and `L9Marked`.
fn id_at(text: &str) -> Option<(Id, &str)> {
    let mut letters = text.chars();
    let letter = letters.next().filter(char::is_ascii_uppercase)?;
    let rest = letters.as_str();
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let number: u8 = rest.get(..digits)?.parse().ok()?;
    let rest = rest.get(digits..)?;
    let part = |text: &str| {
        let inner = text.trim_start().strip_prefix('(')?;
        let part = inner.chars().next().filter(|part| ('a'..='d').contains(part))?;
        inner.get(1..)?.strip_prefix(')').map(|rest| (part, rest.len()))
    };
    if let Some((found, left)) = part(rest) {
        return Some(((letter, number, Some(found)), rest.get(rest.len() - left..)?));
    }
    let mut next = rest.chars();
    match next.next() {
        Some(found @ 'a'..='d') if !next.as_str().starts_with(|c: char| c.is_ascii_alphanumeric()) => {
            Some(((letter, number, Some(found)), next.as_str()))
        }
        Some('M' | 'C') if rest.starts_with("Marked") || rest.starts_with("Counted") => {
            Some(((letter, number, None), rest.get(6..)?))
        }
        Some(c) if c.is_ascii_alphanumeric() || c == '_' => None,
        _ => Some(((letter, number, None), rest)),
    }
}

/// The ids of rules in a text: words of their own, with the letters that rules have.
fn ids(text: &str) -> Vec<Id> {
    let mut found = Vec::new();
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        let begins = !before.is_ascii_alphanumeric() && !['_', '-', '/', '#', '.'].contains(&before);
        if begins
            && CHECKED.contains(c)
            && let Some((id, _)) = text.get(at..).and_then(id_at)
        {
            found.push(id);
        }
        before = c;
    }
    found
}

/// The pages of the specification that a text cites: `spec/wire.md`, `durability.md`, `spec: wire`.
fn cited_pages(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_./:".contains(c)));
    let cited = words.clone().zip(words.skip(1).chain([""])).filter_map(|(word, next)| {
        let page = match word.trim_end_matches(['.', ':']) {
            "spec" if word.ends_with(':') => next.trim_end_matches(['.', ':', '/']),
            word => word.strip_prefix("spec/").or_else(|| word.strip_prefix("docs/spec/"))?,
        };
        let page = page.trim_end_matches(".md");
        let is_page = !page.is_empty() && page.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        is_page.then(|| format!("{page}.md"))
    });
    let named = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let spec =
        ["durability", "defects", "wire", "behaviour", "control", "on-disk", "extensions", "ggate", "conf"];
    let named = named.filter_map(move |word| {
        let page = word.trim_end_matches('.').strip_suffix(".md")?;
        spec.contains(&page).then(|| format!("{page}.md"))
    });
    cited.chain(named)
}

/// All files below a directory in which something may be cited, in order.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if !["target", "corpus", "regressions", "vectors", "trace"].contains(&&*name) {
                    open.push(path);
                }
            } else if name.ends_with(".rs") || name.ends_with(".md") || path.ends_with("sim/seeds/mutants") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        ids(text).into_iter().map(name).collect()
    }

    #[test]
    fn ids_are_words_of_their_own() {
        assert_eq!(named("C1 (d), L9 and keeps(Rule::C1b); L20."), ["C1(d)", "L9", "C1(b)", "L20"]);
        assert_eq!(named("L9Marked FlushNotMarked, G1Counted"), ["L9", "G1"]);
        assert_eq!(named("U8 U64 MAX1 L1_cache VL1 0xA5 L1x L300 x/A5"), [""; 0]);
        assert_eq!(named("(M3) M1, M2; C1(a)"), ["M3", "M1", "M2", "C1(a)"]);
    }

    #[test]
    fn pages_are_found_however_they_are_cited() {
        let cited = |text: &str| cited_pages(text).collect::<Vec<_>>();
        assert_eq!(cited("as (spec/wire.md, Handshake)"), ["wire.md", "wire.md"]);
        assert_eq!(cited("what it says (spec: extensions, \"Disk\")"), ["extensions.md"]);
        assert_eq!(cited("durability.md M2, and README.md"), ["durability.md"]);
        assert_eq!(cited("spec/nowhere.md"), ["nowhere.md"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut rules = Rules::default();
        rules.define("- **L1 Writes** are lost.\n**C1(a)** Before the first.\n**L1.** Again.");
        rules.read("hastd/src/a.rs", "// L1, L2\nlet x = L7;", &BTreeSet::new());
        rules.read("hastd/tests/a.rs", "/// C1 (a): spec/wire.md", &BTreeSet::new());
        assert_eq!(rules.problems[..2], ["L1: defined twice", "hastd/src/a.rs:1: L2 is defined nowhere"]);
        assert_eq!(rules.problems[2], "hastd/tests/a.rs:1: there is no page wire.md");
        assert!(rules.table().contains("C1(a)  Before the first."));
    }

    /// Everything that is cited is there, and every rule is checked by something.
    #[test]
    fn the_rules_of_this_project_are_cited_and_checked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let rules = Rules::of(root).unwrap();
        assert!(rules.rules.len() > 50, "{}", rules.rules.len());
        assert_eq!(rules.problems, [""; 0], "{:#?}", rules.problems);
    }
}

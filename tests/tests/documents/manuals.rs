//! hast-failover(8) names what the program knows. (hast.conf(5) is compared with the parser itself, in hast-conf.)

use super::messages::repository;

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).expect("the repository has it")
}

/// The words of a page's lists whose entries begin like this.
fn entries(page: &str, macro_and_argument: &str) -> Vec<String> {
    let entries = page.lines().filter_map(|line| line.strip_prefix(macro_and_argument));
    entries.flat_map(|words| words.split(" , ")).map(|word| word.trim().to_owned()).collect()
}

/// Settings of hast-failover.conf, where the program takes them apart.
fn settings() -> Vec<String> {
    let source = read("hast-failover/src/config.rs");
    let (_, parser) = source.split_once("fn set(").expect("a function of that name");
    let arms = parser.lines().filter_map(|line| line.strip_prefix("            \"")?.split_once("\" =>"));
    arms.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_setting_of_hast_failover_is_in_its_page_and_in_the_sample() {
    let (page, sample) = (read("docs/man/hast-failover.8"), read("dist/hast-failover.conf.sample"));
    let settings = settings();
    assert!(settings.len() > 20, "{settings:?}");
    let documented = entries(&page, ".It Ic ");
    for setting in &settings {
        assert!(documented.contains(setting), "hast-failover(8) does not have {setting}");
        assert!(sample.contains(&format!("#{setting} = ")), "the sample does not have {setting}");
    }
    for name in documented {
        assert!(settings.contains(&name), "hast-failover(8) has {name}, which is no setting");
    }
}

/// What a setting may be, where it is one of a few words.
#[test]
fn every_word_that_a_setting_takes_is_in_the_page() {
    let (page, source) = (read("docs/man/hast-failover.8"), read("hast-failover/src/config.rs"));
    let (_, parser) = source.split_once("fn set_of_group(").expect("a function of that name");
    let mut found = 0;
    for list in parser.split("let known = [").skip(1) {
        let list = list.split("];").next().unwrap_or_default();
        for word in list.split("(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let mut lines =
                page.lines().filter(|line| line.starts_with(".It Cm ") || line.starts_with(".Cm "));
            let named = lines.any(|line| line.split(' ').any(|found| found == word));
            assert!(named, "hast-failover(8) does not have {word}");
            found += 1;
        }
    }
    assert!(found >= 11, "{found} words alone were found");
}

#[test]
fn every_exit_status_of_hast_failover_is_in_its_page() {
    let (page, source) = (read("docs/man/hast-failover.8"), read("hast-failover/src/run.rs"));
    let documented = entries(&page, ".It ");
    let known = source.lines().filter_map(|line| {
        let (_, value) = line.trim().strip_prefix("pub(crate) const ")?.split_once(": u8 = ")?;
        value.strip_suffix(';')
    });
    let known: Vec<&str> = known.collect();
    assert!(known.len() >= 9, "{known:?}");
    for status in known {
        assert!(documented.iter().any(|entry| entry == status), "hast-failover(8) does not have {status}");
    }
}

//! Each rule that keeps data safe is missed when it is broken: a history in `seeds/mutants` notices.
//!
//! One test, because a rule is broken for the whole process.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use hast_engine::rule::Rule;
use hast_sim::{Plan, break_rule, notices, play};

#[test]
fn every_broken_rule_is_noticed() {
    let seeds = include_str!("../seeds/mutants");
    let mut plans: BTreeMap<String, Vec<Plan>> = BTreeMap::new();
    for line in seeds.lines().filter(|line| !line.starts_with('#')) {
        let line = line.split('#').next().unwrap_or_default().trim();
        let (rule, plan) = line.split_once(' ').expect("a rule and a plan");
        plans.entry(rule.to_owned()).or_default().push(plan.parse().expect("a plan"));
    }
    let mut survivors = Vec::new();
    for rule in Rule::ALL {
        let name = format!("{rule:?}");
        let plans = plans.remove(&name).unwrap_or_default();
        break_rule(None);
        for plan in &plans {
            if let Err(error) = play(*plan) {
                panic!("{name}: the history fails though nothing is broken: {error}");
            }
        }
        break_rule(Some(rule));
        match plans.iter().find_map(|plan| notices(*plan)) {
            Some(how) => println!("{name}: {}", how.lines().next().unwrap_or_default()),
            None => survivors.push(format!("{name}: {} histories notice nothing", plans.len())),
        }
    }
    break_rule(None);
    assert!(survivors.is_empty(), "mutants survive:\n{}", survivors.join("\n"));
}

//! Prints the story: numbered steps, the commands as a person would type them, and what they say.

use std::cell::Cell;
use std::time::Instant;

use hast_tests::{Failure, Node};

/// Prints to standard output and numbers the steps.
pub(crate) struct Teller {
    begin: Instant,
    step: Cell<u32>,
}

impl Teller {
    pub(crate) fn new() -> Teller {
        Teller { begin: Instant::now(), step: Cell::new(0) }
    }

    /// Begins the next step.
    pub(crate) fn step(&self, text: &str) {
        self.step.set(self.step.get().saturating_add(1));
        println!("\n[{:5.1} s] {}. {text}", self.begin.elapsed().as_secs_f64(), self.step.get());
    }

    /// Says something within a step.
    pub(crate) fn say(&self, text: &str) {
        println!("    {text}");
    }

    /// Shows a hastctl command, runs it on a node and shows what it prints.
    pub(crate) fn hastctl(&self, node: &Node, arguments: &[&str]) -> Result<(), Failure> {
        println!("    {}$ hastctl {}", node.name(), arguments.join(" "));
        for line in node.ctl(arguments)?.lines() {
            println!("        {line}");
        }
        Ok(())
    }
}

/// A number of bytes for people: `512 B`, `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = "KiB";
    for next in UNITS {
        unit = next;
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
    }
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_read_well() {
        let shown = [0, 1023, 1024, 1536, 10 << 20, 256 << 20, 3 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 MiB", "256 MiB", "3.0 GiB"]);
    }
}

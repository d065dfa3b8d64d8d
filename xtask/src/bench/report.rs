//! Medians and tables.

use hast_tests::{Context, Outcome};

use super::Wish;

/// The middle of some values.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(f64::NAN);
    let lower = values.get(middle.wrapping_sub(1)).copied().unwrap_or(upper);
    if values.len().is_multiple_of(2) { f64::midpoint(lower, upper) } else { upper }
}

/// What this is measured on, as docs/PERFORMANCE.md wants to know it.
pub(super) fn machine(wish: &Wish) -> Outcome {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("processor unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    let uname = nix::sys::utsname::uname()?;
    let release = uname.release().to_str().context("uname")?;
    println!("{cores} cores, {model}; Linux {release}; providers in {}", wish.directory.display());
    println!("medians of {} rounds of {} s each", wish.rounds, wish.seconds);
    Ok(())
}

/// One line as soon as something was measured.
pub(super) fn progress(what: &str, names: &[&str], values: &[f64], base: f64) {
    let cells: Vec<String> =
        names.iter().zip(values).map(|(name, value)| format!("{name} {:.2}", value / base)).collect();
    println!("  {what:<36} {}", cells.join("  "));
}

/// A table in Markdown, so that it can go into a document as it is.
pub(super) struct Table {
    title: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(title: &str, columns: &[&str]) -> Table {
        let mut head = vec![String::new()];
        head.extend(columns.iter().map(|column| (*column).to_owned()));
        Table { title: title.to_owned(), head, rows: Vec::new() }
    }

    /// A row of ratios to `base`; `unit` says what the base is, in the first column that equals it.
    pub(super) fn ratios(&mut self, name: &str, values: &[f64], base: f64, unit: &str) {
        let cell = |(at, value): (usize, &f64)| match at {
            0 if *value == base => format!("1 ({unit})"),
            _ => format!("{:.2}", value / base),
        };
        self.row(name, values.iter().enumerate().map(cell).collect());
    }

    /// A row of words.
    pub(super) fn row(&mut self, name: &str, cells: Vec<String>) {
        let mut row = vec![name.to_owned()];
        row.extend(cells);
        self.rows.push(row);
    }

    pub(super) fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.head]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells
                .iter()
                .enumerate()
                .map(|(at, cell)| format!("{cell:<width$}", width = width(at)))
                .collect();
            println!("| {} |", cells.join(" | "));
        };
        println!("\n{}\n", self.title);
        line(&self.head);
        let rules: Vec<String> =
            (0..self.head.len()).map(|column| "-".repeat(width(column).max(3))).collect();
        line(&rules);
        for row in &self.rows {
            line(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}

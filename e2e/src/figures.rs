//! What the programs that measure have in common: which figures are chosen, and how times are told.

use std::time::Duration;

use jetwright_testing::target_folder;

/// The figures that the command line chooses.
#[derive(Debug)]
pub struct Chosen(Vec<String>);

impl Chosen {
    /// None where `cargo test --all-targets` runs the program, which is no time to measure.
    #[must_use]
    pub fn read() -> Option<Self> {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let is_bench = arguments.iter().any(|argument| argument == "--bench");
        is_bench.then(|| Self(arguments.into_iter().filter(|argument| !argument.starts_with("--")).collect()))
    }

    /// Whether a figure is chosen; where none is, all are that are measured by default.
    #[must_use]
    pub fn has(&self, name: &str, by_default: bool) -> bool {
        if self.0.is_empty() { by_default } else { self.0.iter().any(|chosen| chosen == name) }
    }
}

/// Requires the release build of the operator, which benches run.
///
/// # Panics
///
/// When it was not built.
pub fn require_operator() {
    let operator = target_folder().join("release/jetwright-operator");
    assert!(
        operator.is_file(),
        "{} is missing: run `cargo build --release -p jetwright-operator`, or make, which does",
        operator.display()
    );
}

/// One line with the shortest, the median and the longest of some times.
pub fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (Some(shortest), Some(longest)) = (times.first(), times.last()) else {
        println!("{what}: did not happen");
        return;
    };
    let [shortest, median, longest] = [*shortest, times[(times.len() - 1) / 2], *longest]
        .map(|time| format!("{:.2} s", time.as_secs_f64()));
    println!("{what} ({} times): shortest {shortest}, median {median}, longest {longest}", times.len());
}

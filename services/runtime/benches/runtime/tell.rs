//! The lines of the result.

use crate::{job::Job, world::Cost};

/// What came of all turns at one measurement.
#[derive(Default)]
pub struct Turns {
    pub ours: Vec<Cost>,
    pub bare: Vec<Cost>,
}

impl Turns {
    /// One line: name, ours per second, bare per second, and the ratio of both; then the least and the greatest ratio of neighbouring
    /// turns, and the processor time that an event took each side, and the server meanwhile.
    pub fn tell(&self, name: &str, job: &Job) {
        let rates = |costs: &[Cost]| costs.iter().map(|cost| rate(job, cost)).collect::<Vec<_>>();
        let (ours, bare) = (rates(&self.ours), rates(&self.bare));
        let pairs: Vec<_> = ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect();
        println!(
            "{name}: {}/s, bare {}/s, {:.2}x (turns {:.2}x to {:.2}x; CPU per event {}, bare {})",
            grouped(median(&ours)),
            grouped(median(&bare)),
            median(&ours) / median(&bare),
            pairs.iter().copied().fold(f64::INFINITY, f64::min),
            pairs.iter().copied().fold(0.0, f64::max),
            processor(job, &self.ours),
            processor(job, &self.bare),
        );
    }
}

/// Events per second.
pub fn rate(job: &Job, cost: &Cost) -> f64 {
    number(job.events) / cost.report.seconds
}

fn processor(job: &Job, costs: &[Cost]) -> String {
    let each = |seconds: &dyn Fn(&Cost) -> f64| {
        median(&costs.iter().map(|cost| seconds(cost) / number(job.events) * 1e6).collect::<Vec<_>>())
    };
    let (side, server) = (each(&|cost| cost.report.processor_seconds), each(&|cost| cost.server_seconds));
    format!("{side:.1} µs + server {server:.1} µs")
}

/// One line: the 50th, 99th and 99.9th percentile of the latencies of ours and of another, the first tenth left out: until then both
/// are beginning.
pub fn tell_latency(name: &str, ours: &Cost, other: &str, others: &Cost) {
    println!("{name}: {}; {other} {}", percentiles(ours), percentiles(others));
}

fn percentiles(cost: &Cost) -> String {
    let all = &cost.report.latencies_us;
    let mut steady = all[all.len() / 10..].to_vec();
    steady.sort_unstable();
    let rank = |thousandth: usize| f64::from(steady[(steady.len() * thousandth).div_ceil(1000) - 1]) / 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms", rank(500), rank(990), rank(999))
}

/// One line: the most memory that either side had while it consumed what waited.
pub fn tell_memory(name: &str, ours: &Cost, bare: &Cost) {
    let mib = |cost: &Cost| number(cost.report.peak_bytes >> 10) / 1024.0;
    println!("{name}: at most {:.1} MiB, bare {:.1} MiB", mib(ours), mib(bare));
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn number(count: u64) -> f64 {
    u32::try_from(count).unwrap().into()
}

/// 123,456
pub fn grouped(rate: f64) -> String {
    let digits = format!("{rate:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

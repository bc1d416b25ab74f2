//! A service on the runtime for `make soak-order`: its handler writes a line when it begins and one when it ends, as
//! `jetwright_e2e::order::history` reads them.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use jetwright_e2e::order::load::monotonic;
use jetwright_runtime::{App, DecodeError, Event, Handler, HandlerError, HandlerOptions, Metadata, Setup};
use tokio::time::sleep;

/// How long each handler takes, unless `SOAK_HANDLING_MILLISECONDS` says otherwise: so long that a process has always begun something when it is killed.
const HANDLING: Duration = Duration::from_millis(30);

/// The number of an event among those of its key.
struct Numbered(String);

impl Event for Numbered {
    fn decode(_: &str, payload: Bytes) -> Result<Self, DecodeError> {
        String::from_utf8(payload.into()).map(Self).map_err(DecodeError::malformed)
    }
}

/// An attempt, which is abandoned unless it is done.
struct Attempt {
    event: String,
    outcome: &'static str,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        write(self.outcome, &self.event);
    }
}

/// One line, by one write: another process may be killed at any moment.
fn write(step: &str, event: &str) {
    let line = format!("{} {step} {event}\n", monotonic().as_nanos());
    drop(stdout().write_all(line.as_bytes()));
}

struct Recorder {
    handling: Duration,
}

impl Handler for Recorder {
    type Event = Numbered;

    async fn handle(&self, Numbered(number): Numbered, metadata: &Metadata) -> Result<(), HandlerError> {
        let Metadata { subject, partition, sequence, source, .. } = metadata;
        let partition = partition.ok_or_else(|| HandlerError::permanent("it has no partition"))?;
        let event = format!("{subject}.{partition} {sequence} {} {number}", source.epoch);
        write("begin", &event);
        let mut attempt = Attempt { event, outcome: "abandoned" };
        sleep(self.handling).await;
        attempt.outcome = "done";
        Ok(())
    }
}

fn handling() -> anyhow::Result<Duration> {
    std::env::var("SOAK_HANDLING_MILLISECONDS")
        .map_or(Ok(HANDLING), |text| Ok(Duration::from_millis(text.parse()?)))
}

/// As many events at once as the runtime's default says, unless `SOAK_CONCURRENCY` says otherwise.
fn options() -> anyhow::Result<HandlerOptions> {
    let default = HandlerOptions::default();
    let concurrency =
        std::env::var("SOAK_CONCURRENCY").map_or(Ok(default.concurrency), |text| text.parse())?;
    Ok(HandlerOptions { concurrency, ..default })
}

#[tokio::main]
async fn main() -> ExitCode {
    // Processes of a container share a log.
    drop(stdout().write_all(b"# starts\n"));
    let app = App::new("soak-worker", &["fulfilment"]);
    let setup = async |setup: &mut Setup, ()| {
        setup.service.handle_with("fulfilment", Recorder { handling: handling()? }, options()?)?;
        anyhow::Ok(())
    };
    app.run(Ok(()), setup).await
}

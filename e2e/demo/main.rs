//! Jetwright on this machine without a cluster: `make demo`.
//!
//! Servers, operator and services are processes on the loopback network. One process, `jetwright-demo serve`, starts them all and plays the node
//! ([`jetwright_e2e::node`]); with it they end. `up` starts that process, declares the shop, and tells what happens; `down` ends it.

mod account;
mod interruption;
mod machine;
mod manifests;
mod run;
mod serve;
mod state;

use std::process::ExitCode;

const USAGE: &str = "\
jetwright-demo up [--follow] [--observe]   starts what does not run yet, declares the shop, and tells what happens; --follow stays until
                                           Ctrl-C; with --observe, Prometheus and Jaeger look on
jetwright-demo down                        ends all of it, and removes its files
jetwright-demo env                         what a shell evaluates to go on with kubectl";

/// Flags of `up`.
const FOLLOW: &str = "--follow";
/// Of `up`, and of `serve`, which it starts.
const OBSERVE: &str = "--observe";

/// What a shell gives to a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run());
    // An account that was interrupted may wait for kubectl still.
    runtime.shutdown_background();
    ended
}

async fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let ended = match words.as_slice() {
        ["up", flags @ ..] if flags.iter().all(|flag| [FOLLOW, OBSERVE].contains(flag)) => {
            run::up(flags.contains(&FOLLOW), flags.contains(&OBSERVE)).await
        }
        ["down"] => run::down().await,
        ["env"] => run::environment(),
        ["serve"] => serve::serve(false).await,
        ["serve", OBSERVE] => serve::serve(true).await,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            if error.is::<interruption::Interrupted>() { INTERRUPTED.into() } else { ExitCode::FAILURE }
        }
    }
}

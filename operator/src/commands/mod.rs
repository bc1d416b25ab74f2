//! The commands that check an installation: [`install`] that it works, [`uninstall`] that nothing needs it any more. They print for
//! people, on standard output.

mod advice;
mod definitions;
mod error;
mod install;
mod probe;
mod state;
mod uninstall;

use std::{error::Error as StdError, fmt::Display, io::Write, process::ExitCode};

use jetwright_process::shutdown::Shutdown;
use kube::Client;
use tokio_util::sync::CancellationToken;

use self::error::Error;
use crate::{args::Command, error::error_chain};

/// Runs a command: success, or a line that says why not.
pub async fn run(command: Command) -> ExitCode {
    let ended = match Shutdown::on_signals() {
        Ok(shutdown) => follow(command, &shutdown.token()).await,
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("FAILED: {}", error_chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

async fn follow(command: Command, stop: &CancellationToken) -> Result<(), Box<dyn StdError>> {
    match command {
        Command::VerifyInstall { namespace, timeout } => {
            Ok(install::run(namespace, timeout.into(), stop).await?)
        }
        Command::VerifyUninstall { namespaces } => Ok(uninstall::run(&namespaces, stop).await?),
    }
}

async fn client() -> Result<Client, Error> {
    Client::try_default().await.map_err(Error::NoKubernetes)
}

/// Prints a line. Nobody being there to read it is no reason to leave something behind.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

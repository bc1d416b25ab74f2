//! Why JetStream does not answer for a stream, in words that a status can have. Pure.

use std::fmt;

/// Why JetStream does not answer for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outage {
    /// No server answers.
    All,
    /// The server that leads it does not answer.
    Server(String),
    /// Too few of the servers that keep it are there to elect a leader.
    Leaderless,
}

impl fmt::Display for Outage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => formatter.write_str("no server does"),
            Self::Server(name) => write!(formatter, "server {name}, which leads it, does not answer"),
            Self::Leaderless => {
                formatter.write_str("it has no leader, since too few of the servers that keep it answer")
            }
        }
    }
}

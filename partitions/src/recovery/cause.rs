//! Why an order is recovered. Pure.

/// Why deliveries may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecoveryCause {
    /// The connection was lost and reestablished.
    Reconnect,
    /// A delivery's number is not the one after the last.
    SequenceGap,
    /// A delivery's number is lower than the last: a server that was killed assigns numbers again.
    SequenceBack,
    /// An acknowledgement is unanswered: the consumer may have another leader now.
    UnansweredAck,
    /// The servers do not permit an acknowledgement: its event comes again.
    DeniedAck,
    /// The lease of the process was over for a while.
    LeaseOver,
    /// Another process is to have the consumer: nothing more begins here.
    HandOver,
}

impl RecoveryCause {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reconnect => "reconnect",
            Self::SequenceGap => "sequence-gap",
            Self::SequenceBack => "sequence-back",
            Self::UnansweredAck => "unanswered-ack",
            Self::DeniedAck => "denied-ack",
            Self::LeaseOver => "lease-over",
            Self::HandOver => "hand-over",
        }
    }
}

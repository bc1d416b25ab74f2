//! Subjects of JetStream's API, in the domain of the connection, and of acknowledgements. Pure.

/// Prefix of the subjects on which deliveries are acknowledged, whatever the domain (NATS ADR-15).
pub const ACK_PREFIX: &str = "$JS.ACK.";

/// The subjects of requests to the JetStream of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSubjects {
    prefix: String,
}

impl ApiSubjects {
    /// Of this domain, or of the default JetStream of the connection's servers.
    #[must_use]
    pub fn new(domain: Option<&str>) -> Self {
        let prefix = domain.map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"));
        Self { prefix }
    }

    /// A request by its verb, such as `STREAM.INFO`, and the names that follow it.
    #[must_use]
    pub fn request(&self, verb: &str, names: &[&str]) -> String {
        names.iter().fold(format!("{}.{verb}", self.prefix), |subject, name| format!("{subject}.{name}"))
    }

    /// A consumer's configuration and state.
    #[must_use]
    pub fn consumer_info(&self, stream: &str, consumer: &str) -> String {
        self.request("CONSUMER.INFO", &[stream, consumer])
    }

    /// A pull request.
    #[must_use]
    pub fn next_messages(&self, stream: &str, consumer: &str) -> String {
        self.request("CONSUMER.MSG.NEXT", &[stream, consumer])
    }

    /// One message, from the leader of its stream, as JSON.
    #[must_use]
    pub fn get_message(&self, stream: &str) -> String {
        self.request("STREAM.MSG.GET", &[stream])
    }

    /// Messages in batches, from any server that has a copy of the stream.
    #[must_use]
    pub fn direct_get(&self, stream: &str) -> String {
        self.request("DIRECT.GET", &[stream])
    }
}

/// The request of a subject of JetStream's API, without prefix and domain; `None` for other subjects.
#[must_use]
pub fn api_request(subject: &str) -> Option<&str> {
    let rest = subject.strip_prefix("$JS.")?;
    rest.strip_prefix("API.").or_else(|| rest.split_once('.')?.1.strip_prefix("API."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_the_domain_before_the_api() {
        let (own, hub) = (ApiSubjects::new(None), ApiSubjects::new(Some("hub")));
        assert_eq!(own.consumer_info("orders", "billing"), "$JS.API.CONSUMER.INFO.orders.billing");
        assert_eq!(hub.next_messages("orders", "billing"), "$JS.hub.API.CONSUMER.MSG.NEXT.orders.billing");
        assert_eq!(hub.get_message("orders"), "$JS.hub.API.STREAM.MSG.GET.orders");
        assert_eq!(own.direct_get("orders"), "$JS.API.DIRECT.GET.orders");
        assert_eq!(hub.request("INFO", &[]), "$JS.hub.API.INFO");
    }

    #[test]
    fn a_request_is_read_with_and_without_a_domain() {
        assert_eq!(api_request("$JS.API.STREAM.INFO.a"), Some("STREAM.INFO.a"));
        assert_eq!(api_request("$JS.hub.API.STREAM.INFO.a"), Some("STREAM.INFO.a"));
        for other in
            ["$JS.ACK.orders.billing.1", "$JS.hub.x.API.INFO", "orders.API.x", "$JS.EVENT.ADVISORY.API"]
        {
            assert_eq!(api_request(other), None, "{other}");
        }
    }
}

//! In: the condition that an EventStream has come to. Out: what to do about it. Pure.

use jetwright_crds::conditions::Reason;

/// Where the operator's log is, of an installation by the chart.
const LOG: &str = "kubectl logs -n <the operator's namespace> \
     -l app.kubernetes.io/part-of=jetwright,app.kubernetes.io/component=operator";

/// What to do where the stream that was made to verify an installation is not ready for this reason; None where no operator said
/// anything about it.
pub fn of(reason: Option<&str>, namespace: &str) -> String {
    let Some(reason) = reason else {
        return format!(
            "no operator has looked at it: see that one runs and leads ({LOG}), and that it looks after namespace {namespace} \
             (value namespaces of the chart, flag --namespaces)"
        );
    };
    let is = |known: Reason| known.as_str() == reason;
    if is(Reason::NoConnection) {
        format!(
            "add {namespace} to the chart's value defaultConnectionNamespaces (flag --default-connection-namespaces), or name a \
             namespace that is served with --namespace"
        )
    } else if is(Reason::Disconnected) {
        format!(
            "the operator does not reach NATS: check the chart's values nats.url and nats.credentialsSecret (flags --nats-url, \
             --nats-credentials-folder), that NATS runs, and the network between them; the operator's log says more: {LOG}"
        )
    } else if is(Reason::JetStreamUnavailable) {
        format!(
            "NATS is connected and JetStream does not answer: see that the servers run with JetStream, that all of them are there, and \
             that the account of the operator's user may use it; the operator's log says more: {LOG}"
        )
    } else if is(Reason::Refused) {
        "change what it says: what was asked for is a stream of at most 64Ki in memory, which takes an account with JetStream and \
         room in memory, and the operator's user the NATS permissions that docs/operator.md lists"
            .to_owned()
    } else if is(Reason::Invalid) {
        "the operator does not understand what this version writes: bring both, and the definitions, to the same version".to_owned()
    } else {
        format!("docs/conditions.md tells what the reason means; the operator's log says more: {LOG}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_names_the_value_of_the_chart_and_the_flag() {
        for (reason, words) in [
            (Some("NoConnection"), ["add shop to", "defaultConnectionNamespaces"]),
            (Some("Disconnected"), ["nats.url", "nats.credentialsSecret"]),
            (Some("JetStreamUnavailable"), ["run with JetStream", "kubectl logs"]),
            (Some("Refused"), ["in memory", "NATS permissions"]),
            (Some("Invalid"), ["the same version", "definitions"]),
            (Some("Failed"), ["docs/conditions.md", "kubectl logs"]),
            (None, ["no operator has looked at it", "looks after namespace shop"]),
        ] {
            let advice = of(reason, "shop");
            assert!(words.iter().all(|word| advice.contains(word)), "{reason:?}: {advice}");
        }
    }
}

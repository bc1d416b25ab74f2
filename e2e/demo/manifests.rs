//! What the demo declares: the manifests that Helm makes of `charts/shop` with the values `shop.yaml`. They are kept beside this file, so that the
//! demo needs no Helm, and a test compares them with what Helm makes.

use std::fs;

use anyhow::{Context, Result};

use crate::{
    account::Kubectl,
    serve::{PASSWORD, USERS},
    state::{Home, Parts},
};

/// The namespace of the shop.
pub const SHOP: &str = "shop";
/// Services that a port of this machine stands for.
pub const SERVICES: [&str; 3] = ["user-directory", "order-fulfilment", PAYMENTS];

const PAYMENTS: &str = "payment-simulator";
const MANIFESTS: &str = include_str!("shop-manifests.yaml");

/// Declares the shop in its namespace, with the Secrets that its pods identify themselves to NATS by.
///
/// # Errors
///
/// When the API server refuses something.
pub fn apply(home: &Home, parts: &Parts, kubectl: &Kubectl) -> Result<()> {
    let path = home.path("shop.yaml");
    let payments = parts.services.get(PAYMENTS).context("no port for payments")?;
    let otlp = parts.observers.as_ref().map(|observers| observers.otlp.as_str());
    let text = format!("{}---\n{}", prerequisites(), traced(&placed(MANIFESTS, payments), otlp));
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    // Who scaled the services owns that field since; the demo takes it back.
    let file = format!("--filename={}", path.display());
    kubectl.run(&["apply", "--server-side", "--force-conflicts", "--namespace", SHOP, &file])?;
    Ok(())
}

/// Nothing resolves the names of Services here, so that a URL names the port that stands for one.
fn placed(manifests: &str, payments: &str) -> String {
    manifests.replace(&format!("http://{PAYMENTS}"), payments)
}

/// The payment simulator is no workload of the operator, which tells its own pods where traces go.
fn traced(manifests: &str, otlp: Option<&str>) -> String {
    let first = "            - name: PAYMENT_SIMULATOR_HTTP_ADDRESS\n";
    let added = otlp.map(|url| {
        format!("            - name: OTEL_EXPORTER_OTLP_ENDPOINT\n              value: \"{url}\"\n{first}")
    });
    added.map_or_else(|| manifests.to_owned(), |added| manifests.replace(first, &added))
}

/// What an administrator makes before the chart is installed.
fn prerequisites() -> String {
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {SHOP}\n  labels: {{pod-security.kubernetes.io/enforce: restricted}}\n"
    );
    let secret = |user: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: nats-{user}}}\nstringData: {{username: {user}, password: {PASSWORD}}}\n"
        )
    };
    namespace + &USERS.map(secret).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_the_payments_is_the_only_one_that_names_a_service() {
        let text = placed(MANIFESTS, "http://127.0.0.1:12345");
        let urls: Vec<_> = text.lines().filter(|line| line.contains("http://")).map(str::trim).collect();
        assert_eq!(urls, [r#"value: "http://127.0.0.1:12345""#]);
    }

    #[test]
    fn the_payment_simulator_is_told_where_traces_go() {
        assert_eq!(traced(MANIFESTS, None), MANIFESTS);
        let text = traced(MANIFESTS, Some("http://127.0.0.1:4318"));
        let told: Vec<_> = text.lines().skip_while(|line| !line.contains("OTEL_EXPORTER")).take(2).collect();
        assert_eq!(told[1].trim(), r#"value: "http://127.0.0.1:4318""#);
        assert_eq!(text.lines().count(), MANIFESTS.lines().count() + 2);
    }
}

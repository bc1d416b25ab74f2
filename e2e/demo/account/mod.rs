//! The account: what was declared, what became of it, and what happens when things go wrong. It is printed as it happens.

mod logs;
mod observed;
mod partitions;
mod shop;
mod table;
mod trouble;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use self::shop::Shop;
use crate::{
    manifests::{self, SHOP},
    state::{Home, Parts},
};

/// kubectl as a user of the demo runs it.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    fn new(parts: &Parts) -> Self {
        Self { program: parts.kubectl.clone(), kubeconfig: parts.kubeconfig.clone() }
    }

    /// Runs it, and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails, with what it complained of.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.program.display().to_string())?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same in the namespace of the shop.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn shop(&self, args: &[&str]) -> Result<String> {
        self.run(&[args, &["--namespace", SHOP]].concat())
    }
}

/// Declares the shop, and tells what happens in it.
///
/// # Errors
///
/// When something does not happen as it should.
pub async fn tell(home: &Home, parts: &Parts, began: Instant) -> Result<()> {
    let kubectl = Kubectl::new(parts);
    manifests::apply(home, parts, &kubectl)?;
    eprintln!("demo: declared the shop; waiting until all of it is ready (usually some seconds)");
    await_ready(&kubectl).context("not everything became ready")?;
    eprintln!("demo: all of it is ready after {} seconds", began.elapsed().as_secs());
    differences();
    declared(&kubectl)?;
    let shop = Shop::new(parts)?;
    let (user, order) = orders(home, &shop).await?;
    partitions::handed_over(&kubectl, &shop, &user, parts).await?;
    trouble::program_killed(home, &kubectl, &shop, &user, parts).await?;
    trouble::drift(&kubectl, parts).await?;
    trouble::dead_letter(parts).await?;
    if let Some(observers) = &parts.observers {
        observed::tell(home, observers, &shop, &user).await?;
    }
    next(&order);
    Ok(())
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn await_ready(kubectl: &Kubectl) -> Result<()> {
    let timeout = "--timeout=2m";
    kubectl.shop(&["wait", "eventstream,eventconsumer", "--all", "--for=condition=Ready", timeout])?;
    kubectl.shop(&["wait", "deployment", "--all", "--for=condition=Available", timeout])?;
    Ok(())
}

fn differences() {
    heading(
        "This is no cluster. API server, controllers, NATS and operator are the real ones; the node runs a pod's program as a process:",
    );
    println!("  - a listen address 0.0.0.0 is the pod's own, 127.77.0.N");
    println!("  - a path that is mounted is a folder of the pod");
    println!("  - a URL of a Service is a port of 127.0.0.1, which sends to the pods that are ready");
    println!("No images are pulled, and there is no DNS, no NetworkPolicy and no token of a ServiceAccount.");
}

fn declared(kubectl: &Kubectl) -> Result<()> {
    heading(
        "Declared (e2e/demo/shop-manifests.yaml, what Helm makes of charts/shop), and what became of it in JetStream:",
    );
    print!("{}", kubectl.shop(&["get", "eventstreams,eventconsumers"])?);
    heading("What the operator made for the pods of these EventConsumers, and Kubernetes of that:");
    let made = "deployments,pods,services,poddisruptionbudgets";
    print!("{}", kubectl.shop(&["get", made, "--selector=app.kubernetes.io/managed-by=jetwright"])?);
    Ok(())
}

/// The path of two orders; their user, and the order that is confirmed.
async fn orders(home: &Home, shop: &Shop) -> Result<(String, String)> {
    let user = shop.register().await?;
    let placed = shop.place(&user, "mug", 2, "").await?;
    let declined = shop.place(&user, "raffle-ticket", 1, "").await?;
    let (order, rejected) = (shop.ended(&placed).await?, shop.ended(&declined).await?);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();

    heading(&format!("A user registered over HTTP: {user}"));
    heading(&format!(
        "Her order of two mugs is {}: {placed}, {}",
        text(&order["state"]),
        text(&order["authorization_id"])
    ));
    let registration = format!("users.{user}");
    let bindings = ["user-directory", "order-users", "order-fulfilment"];
    print!("{}", logs::path(home, &bindings, &[&registration, &placed]).await);
    let rejection = &rejected["rejection"];
    heading(&format!(
        "Her order of a raffle ticket is {}: {declined}, by {}: {}",
        text(&rejected["state"]),
        text(&rejection["step"]),
        text(&rejection["reason"])
    ));
    let notification = format!("notifications.{user}");
    let bindings = ["order-fulfilment", "order-compensation"];
    print!("{}", logs::path(home, &bindings, &[&declined, &notification]).await);
    Ok((user, placed))
}

fn next(order: &str) {
    heading("To try next, after this line:");
    println!("  eval \"$({} env)\"\n", program());
    println!("  curl $ORDER_FULFILMENT/orders/{order}");
    for line in [
        "kubectl get eventstreams,eventconsumers,pods --namespace shop",
        "kubectl describe eventconsumer order-fulfilment --namespace shop",
        "kubectl logs --namespace shop deployment/order-fulfilment --tail=5",
        "kubectl scale eventconsumer order-fulfilment --namespace shop --replicas=3",
        "kubectl delete pod --namespace shop --selector jetwright.dev/workload=order-fulfilment --wait=false",
        r#"kubectl patch eventstream notifications --namespace shop --type=merge --patch '{"spec":{"limits":{"maxAge":"2h"}}}'"#,
        "kubectl get events --namespace shop --sort-by=.lastTimestamp",
        "kubectl explain eventstream.spec.limits",
    ] {
        println!("  {line}");
    }
}

/// This program as a shell in the current folder calls it.
fn program() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "jetwright-demo".into());
    let here = std::env::current_dir().unwrap_or_default();
    program.strip_prefix(&here).unwrap_or(&program).display().to_string()
}

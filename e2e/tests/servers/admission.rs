//! The chart's admission policy: who may declare pods, as the API server decides it.

use std::{fs, sync::Arc, time::Duration};

use jetwright_testing::{ControlPlane, Folder, await_until};
use serde_json::json;

use crate::operator_chart::{VALUES, control_plane, install, render};

/// A consumer with pods of this image, and the arguments by which an account applies it.
fn consumer(folder: &Folder, image: &str) -> [String; 4] {
    let file = folder.path().join("consumer.json");
    let template = json!({"spec": {"containers": [{"name": "app", "image": image}]}});
    let manifest = json!({
        "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "metadata": {"name": "mails"},
        "spec": {"streamRef": {"name": "orders"}, "workload": {"template": template}},
    });
    fs::write(&file, manifest.to_string()).unwrap();
    [
        "apply".into(),
        "--server-side".into(),
        "--force-conflicts".into(),
        format!("--filename={}", file.display()),
    ]
}

/// Runs kubectl in a namespace as another account.
fn run_as(
    control_plane: &ControlPlane,
    account: &str,
    namespace: &str,
    arguments: &[impl AsRef<str>],
) -> Result<String, String> {
    let who = [format!("--as={account}"), format!("--namespace={namespace}")];
    let all = who.iter().map(String::as_str).chain(arguments.iter().map(AsRef::as_ref));
    control_plane.kubectl(all).map_err(|error| error.to_string())
}

/// Gives an account these rights in a namespace, and waits until the API server, which hears of them later, allows it.
async fn grant(control_plane: &ControlPlane, account: &str, namespace: &str, resources: &str) {
    let name = format!("{account}-{}", resources.replace(['.', '/', ','], "-"));
    let verbs = "--verb=get,list,watch,create,update,patch,delete";
    let resource = format!("--resource={resources}");
    control_plane.kubectl(["create", "role", &name, verbs, &resource, "--namespace", namespace]).unwrap();
    let (role, user) = (format!("--role={name}"), format!("--user={account}"));
    control_plane.kubectl(["create", "rolebinding", &name, &role, &user, "--namespace", namespace]).unwrap();
    for resource in resources.split(',') {
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let part = format!("--subresource={part}");
        await_until("the rights to be known", Duration::from_secs(30), async || {
            run_as(control_plane, account, namespace, &["auth", "can-i", "patch", resource, &part])
        })
        .await;
    }
}

/// An API server with the chart, and an account that may write EventConsumers and nothing else.
async fn with_admission(values: &[&str]) -> (ControlPlane, Arc<Folder>) {
    let control_plane = control_plane().await;
    install(&control_plane, &[&["--no-hooks"], values].concat()).unwrap();
    for namespace in ["shop", "billing"] {
        grant(
            &control_plane,
            "tenant",
            namespace,
            "eventconsumers.jetwright.dev,eventconsumers.jetwright.dev/scale",
        )
        .await;
    }
    (control_plane, Folder::new("admission"))
}

const REFUSAL: &str =
    "spec.workload makes pods: tenant has to be allowed to create deployments.apps in namespace shop";

/// Waits until the API server knows the policy.
async fn await_refusal(control_plane: &ControlPlane, arguments: &[String]) {
    await_until("the account is refused", Duration::from_secs(30), || async {
        match run_as(control_plane, "tenant", "shop", &[arguments, &["--dry-run=server".into()]].concat()) {
            Err(why) if why.contains(REFUSAL) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn who_may_not_create_deployments_may_not_declare_pods() {
    let (control_plane, folder) = with_admission(&[]).await;
    let apply = consumer(&folder, "x:1");
    await_refusal(&control_plane, &apply).await;
    let tenant = |arguments: &[&str]| run_as(&control_plane, "tenant", "shop", arguments);
    let manifest = &apply[3];
    let refused = |arguments: &[&str]| {
        let why = tenant(arguments).unwrap_err();
        assert!(why.contains(REFUSAL), "{arguments:?}: {why}");
    };
    refused(&["create", manifest]);
    refused(&["apply", manifest]);
    // One without pods is nothing but a consumer, until it gets some.
    control_plane.kubectl(["create", "--namespace=shop", manifest]).unwrap();
    control_plane.kubectl(["delete", "--namespace=shop", "eventconsumer", "mails"]).unwrap();
    let plain = folder.path().join("plain.json");
    let spec = json!({"streamRef": {"name": "orders"}});
    let plain_manifest = json!({
        "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "metadata": {"name": "mails"}, "spec": spec,
    });
    fs::write(&plain, plain_manifest.to_string()).unwrap();
    tenant(&["create", &format!("--filename={}", plain.display())]).unwrap();
    refused(&["replace", manifest]);
    refused(&["apply", "--server-side", manifest]);
    let template = r#"{"spec": {"workload": {"template": {"spec": {"containers": [{"name": "app"}]}}}}}"#;
    refused(&["patch", "eventconsumer", "mails", "--type=merge", "--patch", template]);
    // As Flux does, by the account of a tenant.
    let flux = "system:serviceaccount:shop:flux";
    let flux_refusal = {
        grant(&control_plane, flux, "shop", "eventconsumers.jetwright.dev").await;
        run_as(&control_plane, flux, "shop", &apply).unwrap_err()
    };
    assert!(flux_refusal.contains(&REFUSAL.replace("tenant", flux)), "{flux_refusal}");
    grant(&control_plane, flux, "shop", "deployments.apps").await;
    run_as(&control_plane, flux, "shop", &apply).unwrap();
}

#[tokio::test]
async fn who_changes_no_pods_need_not_be_allowed_to_make_them() {
    let (control_plane, folder) = with_admission(&[]).await;
    let apply = consumer(&folder, "x:1");
    await_refusal(&control_plane, &apply).await;
    control_plane.kubectl(["create", "--namespace=shop", &apply[3]]).unwrap();
    let patch = |account: &str, type_: &str, change: &str| {
        let type_ = format!("--type={type_}");
        run_as(
            &control_plane,
            account,
            "shop",
            &["patch", "eventconsumer", "mails", &type_, "--patch", change],
        )
    };
    // The operator's finalizer, by the rights that the chart gives it.
    let operator = "system:serviceaccount:jetwright:jetwright-operator";
    let finalizer = r#"{"metadata": {"finalizers": ["jetwright.dev/cleanup"]}}"#;
    patch(operator, "merge", finalizer).unwrap();
    // What the garbage collector and the namespace controller take out.
    let collector = "system:serviceaccount:kube-system:generic-garbage-collector";
    grant(&control_plane, collector, "shop", "eventconsumers.jetwright.dev").await;
    patch(collector, "merge", r#"{"metadata": {"ownerReferences": null, "finalizers": null}}"#).unwrap();
    // The tenant, in all that is not pods.
    patch("tenant", "merge", r#"{"metadata": {"labels": {"a": "b"}}, "spec": {"ackWait": "7s"}}"#).unwrap();
    // kubectl scale, and what a HorizontalPodAutoscaler does, by the right of their own.
    let autoscaler = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
    grant(
        &control_plane,
        autoscaler,
        "shop",
        "eventconsumers.jetwright.dev/scale,eventconsumers.jetwright.dev",
    )
    .await;
    for (account, replicas) in [("tenant", "4"), (autoscaler, "5")] {
        let scale = ["scale", "eventconsumer", "mails", &format!("--replicas={replicas}")];
        run_as(&control_plane, account, "shop", &scale).unwrap();
        let get = ["get", "eventconsumer", "mails", "--output=jsonpath={.spec.workload.replicas}"];
        assert_eq!(run_as(&control_plane, "tenant", "shop", &get).unwrap(), replicas);
    }
    run_as(&control_plane, "tenant", "shop", &["delete", "eventconsumer", "mails"]).unwrap();
}

#[tokio::test]
async fn who_declares_pods_is_judged_where_the_operator_looks_and_unless_it_is_switched_off() {
    let (control_plane, folder) = with_admission(&["--set=namespaces={shop}"]).await;
    let apply = consumer(&folder, "x:1");
    await_refusal(&control_plane, &apply).await;
    run_as(&control_plane, "tenant", "billing", &apply).unwrap();
    let off = render(&[&VALUES[..], &["--set=workloads.admissionPolicy=false"]].concat()).unwrap();
    assert!(!off.contains("ValidatingAdmissionPolicy"), "{off}");
}

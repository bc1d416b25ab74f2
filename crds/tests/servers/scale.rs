//! The scale subresource of an EventConsumer: what `kubectl scale` and a HorizontalPodAutoscaler use.

use crate::support::Objects;
use serde_json::{Value, json};

const OBJECTS: &str = "
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: with-pods}
spec: {streamRef: {name: orders}, workload: {template: {spec: {containers: [{name: app, image: app}]}}}}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: without-pods}
spec: {streamRef: {name: orders}}
";

#[tokio::test]
async fn kubectl_scale_sets_the_pods_of_a_workload() {
    let objects = Objects::applied(OBJECTS).await;
    let selector = "jetwright.dev/workload=with-pods";
    let status = json!({"status": {"replicas": 1, "selector": selector}});
    objects.write_status("ec/with-pods", &status.to_string());
    let scale = || -> Value {
        let get = ["get", "ec/with-pods", "--subresource=scale", "-o", "json"];
        serde_json::from_str(&objects.kubectl(&get).unwrap()).unwrap()
    };
    let before = scale();
    assert_eq!(before["kind"], "Scale");
    assert_eq!(before["spec"], json!({"replicas": 1}));
    assert_eq!(before["status"], json!({"replicas": 1, "selector": selector}));

    objects.kubectl(&["scale", "ec/with-pods", "--replicas=5"]).unwrap();
    assert_eq!(scale()["spec"], json!({"replicas": 5}));
    let replicas = ["get", "ec/with-pods", "-o", "jsonpath={.spec.workload.replicas}"];
    assert_eq!(objects.kubectl(&replicas).unwrap(), "5");
    let refused = objects.kubectl(&["scale", "ec/with-pods", "--replicas=1001"]).unwrap_err();
    assert!(refused.contains("spec.workload.replicas"), "{refused}");
}

#[tokio::test]
async fn what_has_no_pods_cannot_be_scaled() {
    let objects = Objects::applied(OBJECTS).await;
    let refused = objects.kubectl(&["scale", "ec/without-pods", "--replicas=2"]).unwrap_err();
    assert!(refused.contains("spec.workload.template"), "{refused}");
}

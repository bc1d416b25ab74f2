//! The Kubernetes API.

use jetwright_testing::ControlPlane;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use std::fs;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.test.jetwright.dev}
spec:
  group: test.jetwright.dev
  scope: Namespaced
  names: {kind: Boat, plural: boats, singular: boat}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {seats: {type: integer}}
            x-kubernetes-validations: [{rule: "self.seats > 0", message: "a boat has seats"}]
"#;

#[tokio::test]
async fn an_object_is_kept_in_a_namespace_of_the_test() {
    let namespace = ControlPlane::shared().await.namespace("kept").await;
    let config: ConfigMap =
        serde_json::from_value(serde_json::json!({"metadata": {"name": "tide"}, "data": {"level": "high"}}))
            .unwrap();
    namespace.api().create(&PostParams::default(), &config).await.unwrap();
    assert_eq!(namespace.api::<ConfigMap>().get("tide").await.unwrap().data, config.data);
}

#[tokio::test]
async fn tests_that_share_a_control_plane_have_namespaces_of_their_own() {
    let control_plane = ControlPlane::shared().await;
    let (one, other) = (control_plane.namespace("own").await, control_plane.namespace("own").await);
    assert_ne!(one.name(), other.name());
    let name = one.name().to_owned();
    drop(one);
    let dropped = control_plane.kubectl(["get", "namespace", &name, "-o", "jsonpath={.status.phase}"]);
    assert_eq!(dropped.unwrap(), "Terminating");
}

#[tokio::test]
async fn definitions_are_served_once_they_are_applied() {
    let control_plane = ControlPlane::shared().await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("boats.yaml"), DEFINITION).unwrap();
    control_plane.apply(folder.path()).await;

    let namespace = control_plane.namespace("boats").await;
    let boat = |seats| {
        format!(
            "apiVersion: test.jetwright.dev/v1\nkind: Boat\nmetadata: {{name: skiff, namespace: {}}}\nspec: {{seats: {seats}}}\n",
            namespace.name()
        )
    };
    let file = folder.path().join("skiff");
    fs::write(&file, boat(0)).unwrap();
    let refused = control_plane.kubectl(["apply", "-f", file.to_str().unwrap()]).unwrap_err();
    assert!(refused.to_string().contains("a boat has seats"), "{refused}");
    fs::write(&file, boat(4)).unwrap();
    control_plane.apply(&file).await;
}

#[tokio::test]
async fn a_service_account_is_given_a_token() {
    let namespace = ControlPlane::shared().await.namespace("tokens").await;
    let kubectl =
        |args: &[&str]| namespace.control_plane().kubectl(["-n", namespace.name()].iter().chain(args));
    kubectl(&["create", "serviceaccount", "sailor"]).unwrap();
    let token = kubectl(&["create", "token", "sailor"]).unwrap();
    let who =
        kubectl(&["auth", "whoami", "--token", token.trim(), "-o", "jsonpath={.status.userInfo.username}"])
            .unwrap();
    assert_eq!(who, format!("system:serviceaccount:{}:sailor", namespace.name()));
}

#[tokio::test]
async fn the_administrators_client_works_in_every_test() {
    let client = ControlPlane::shared().await.client().await;
    let version = client.apiserver_version().await.unwrap();
    assert_eq!(version.major, "1");
    let maps: Api<ConfigMap> = Api::all(client);
    maps.list(&kube::api::ListParams::default()).await.unwrap();
}

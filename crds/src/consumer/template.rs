//! The pod template of a workload, as the user wrote it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A pod template, kept as one JSON text: as a tree of values it takes many times the memory, and stores hold thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTemplate(Box<str>);

impl PodTemplate {
    /// The template as a tree of values.
    #[must_use]
    pub fn to_json(&self) -> Value {
        // It was made of a tree of values, so that it is one.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<&Value> for PodTemplate {
    fn from(template: &Value) -> Self {
        Self(template.to_string().into())
    }
}

impl Serialize for PodTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PodTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&Value::deserialize(deserializer)?))
    }
}

/// A whole PodTemplateSpec has more schema than an annotation may hold, so only what the operator itself relies on is described
/// here. The API server judges the rest when the Deployment is applied.
impl JsonSchema for PodTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["spec"],
            "x-kubernetes-preserve-unknown-fields": true,
            "properties": {
                "spec": {
                    "description": "The pod's spec, as in a Deployment.",
                    "type": "object",
                    "required": ["containers"],
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "containers": {
                            "description": "The pod's containers; the first is the program that consumes.",
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 32,
                            "x-kubernetes-list-type": "map",
                            "x-kubernetes-list-map-keys": ["name"],
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "x-kubernetes-preserve-unknown-fields": true,
                                "properties": {
                                    "name": {
                                        "description": "Name of the container in its pod.",
                                        "type": "string",
                                        "minLength": 1,
                                        "maxLength": 63
                                    }
                                }
                            }
                        }
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_is_what_the_user_wrote_also_what_nobody_knows() {
        let written = json!({"spec": {"containers": [{"name": "app", "fromTheFuture": {"x": [1, null]}}]}});
        let template: PodTemplate = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(
            (template.to_json(), serde_json::to_value(&template).unwrap()),
            (written.clone(), written)
        );
    }
}

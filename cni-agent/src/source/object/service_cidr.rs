use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{FieldError, Known, described, nullable, range, resource};
use crate::model::{Object, ObjectKey, ServiceCidr};

#[derive(Clone, Debug, Deserialize)]
pub(in crate::source) struct ServiceCidrObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default, deserialize_with = "nullable")]
    cidrs: Vec<String>,
}

resource!(
    ServiceCidrObject,
    ClusterResourceScope,
    "networking.k8s.io",
    "v1",
    "ServiceCIDR",
    "servicecidrs"
);

impl Known for ServiceCidrObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::ServiceCidr(meta.name.clone().unwrap_or_default())
    }

    fn into_object(self) -> Result<Object, FieldError> {
        let ranges = self.spec.cidrs.iter().map(|text| range("spec.cidrs", text));
        Ok(Object::ServiceCidr(ServiceCidr {
            name: self.metadata.name.unwrap_or_default(),
            ranges: ranges.collect::<Result<_, _>>()?,
        }))
    }
}

//! Building the object-store library's clients. Nothing is asked of the network here.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use super::options::StoreOptions;
use crate::error::StoreError;
use crate::url::{RepositoryUrl, Service};

/// One client behind the three interfaces that are used of it.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) parts: Arc<dyn MultipartStore>,
    pub(super) pages: Arc<dyn PaginatedListStore>,
    /// Where it connects to, for messages.
    pub(super) endpoint: String,
}

impl Client {
    fn new<T: ObjectStore + MultipartStore + PaginatedListStore>(
        client: T,
        endpoint: String,
    ) -> Client {
        let client = Arc::new(client);
        Client {
            objects: client.clone(),
            parts: client.clone(),
            pages: client,
            endpoint,
        }
    }
}

/// Makes the client for a bucket.
pub(super) fn connect(
    location: &RepositoryUrl,
    service: Service,
    bucket: &str,
    options: &StoreOptions,
) -> Result<Client, StoreError> {
    let endpoint = options.endpoint_url(location)?;
    match service {
        Service::S3 => s3(location, bucket, options, endpoint),
        Service::Google => google(location, bucket, options, endpoint),
        Service::Azure => azure(location, bucket, options, endpoint),
    }
}

fn s3(
    location: &RepositoryUrl,
    bucket: &str,
    options: &StoreOptions,
    endpoint: Option<String>,
) -> Result<Client, StoreError> {
    let keys = options.keys(location, &|name| std::env::var(name).ok())?;
    let region = options
        .region
        .clone()
        .or_else(|| keys.as_ref().and_then(|keys| keys.region.clone()))
        .unwrap_or_else(|| "us-east-1".to_owned());
    let mut builder = match keys {
        Some(keys) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(keys.access_key_id.reveal())
                .with_secret_access_key(keys.secret_access_key.reveal());
            match keys.session_token {
                Some(token) => builder.with_token(token.reveal()),
                None => builder,
            }
        }
        // The library looks for web identity, container and instance roles.
        None => AmazonS3Builder::from_env(),
    };
    // A host name cannot hold a bucket with dots under the provider's certificate.
    let path_style = options
        .path_style
        .unwrap_or(endpoint.is_some() || bucket.contains('.'));
    let shown = match &endpoint {
        Some(endpoint) => endpoint.clone(),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    // Over TLS the payload's hash would only cost: TLS protects the bytes on their way, our own hashes ever after.
    let unsigned = shown.starts_with("https://");
    if let Some(endpoint) = endpoint {
        // The library wants the bucket in the endpoint when it is to stand in the host's name.
        let endpoint = match endpoint.split_once("://") {
            Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint,
        };
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    let client = builder
        .with_bucket_name(bucket)
        .with_region(region)
        .with_virtual_hosted_style_request(!path_style)
        .with_unsigned_payload(unsigned)
        // Compatible stores often lack the bulk call, and we delete one by one.
        .with_disable_bulk_delete(true)
        .with_client_options(client_options(location, options)?)
        .with_retry(no_retries())
        .build();
    client
        .map(|client| Client::new(client, shown))
        .map_err(|error| refused(location, &error))
}

fn google(
    location: &RepositoryUrl,
    bucket: &str,
    options: &StoreOptions,
    endpoint: Option<String>,
) -> Result<Client, StoreError> {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    if let Some(file) = &options.credentials_file {
        builder = builder.with_application_credentials(file.display().to_string());
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(endpoint);
    }
    let client = builder
        .with_client_options(client_options(location, options)?)
        .with_retry(no_retries())
        .build();
    let endpoint = endpoint.unwrap_or_else(|| "https://storage.googleapis.com".to_owned());
    client
        .map(|client| Client::new(client, endpoint))
        .map_err(|error| refused(location, &error))
}

fn azure(
    location: &RepositoryUrl,
    container: &str,
    options: &StoreOptions,
    endpoint: Option<String>,
) -> Result<Client, StoreError> {
    if options.storage_class.is_some() {
        return Err(StoreError::Options {
            location: location.clone(),
            reason: "a storage class cannot be set on Azure's large uploads".to_owned(),
            hint: "leave storage_class out, and set the account's default access tier",
        });
    }
    let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
    if let Some(account) = &options.access_key_id {
        builder = builder.with_account(account.reveal());
    }
    if let Some(key) = &options.secret_access_key {
        builder = builder.with_access_key(key.reveal());
    }
    let shown = endpoint
        .clone()
        .unwrap_or_else(|| "https://blob.core.windows.net".to_owned());
    if let Some(endpoint) = endpoint {
        let plain = endpoint.starts_with("http://");
        builder = builder.with_endpoint(endpoint).with_allow_http(plain);
    }
    let client = builder
        .with_client_options(client_options(location, options)?)
        .with_retry(no_retries())
        .build();
    client
        .map(|client| Client::new(client, shown))
        .map_err(|error| refused(location, &error))
}

fn client_options(
    location: &RepositoryUrl,
    options: &StoreOptions,
) -> Result<ClientOptions, StoreError> {
    let mut client = ClientOptions::new()
        // Each attempt has a time of its own that grows with its size, instead of one for all.
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(10).min(options.patience))
        // Below the idle time after which common load balancers hang up.
        .with_pool_idle_timeout(Duration::from_secs(20))
        // Whether plain HTTP is acceptable was decided when the endpoint was read.
        .with_allow_http(
            options
                .endpoint
                .as_ref()
                .is_some_and(|endpoint| endpoint.starts_with("http://")),
        )
        .with_allow_invalid_certificates(options.skip_tls_verification);
    if let Some(file) = &options.ca_certificate {
        let text = std::fs::read(file)
            .map_err(|error| StoreError::from_io("read the CA certificate", file, 0, error))?;
        let certificates = Certificate::from_pem_bundle(&text).unwrap_or_default();
        if certificates.is_empty() {
            return Err(StoreError::Options {
                location: location.clone(),
                reason: format!("\"{}\" holds no certificate", file.display()),
                hint: "ca_certificate names a file with certificates in PEM form (BEGIN CERTIFICATE)",
            });
        }
        for certificate in certificates {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

/// All retries are ours: only then is it known which attempt may have had its effect.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

fn refused(location: &RepositoryUrl, error: &object_store::Error) -> StoreError {
    let text = error.to_string();
    // The library's text may quote settings, secrets among them, so it only chooses between ours.
    let (reason, hint) = if text.contains("Account must be specified") {
        (
            "the storage account is not known",
            "set access_key_id or AZURE_STORAGE_ACCOUNT_NAME to the account's name",
        )
    } else if text.contains("credential")
        || text.contains("key")
        || text.contains("service account")
    {
        (
            "the credentials cannot be read",
            "check the credentials in the configuration, the environment and the credentials file",
        )
    } else {
        (
            "its settings are not accepted",
            "check endpoint, region and credentials in the configuration and the environment",
        )
    };
    StoreError::Options {
        location: location.clone(),
        reason: reason.to_owned(),
        hint,
    }
}

use leeward_repository::store::Store;
pub struct Lease;
pub struct LeaseOptions;
#[derive(Debug)]
pub enum LeaseError {
    Held {},
    Other,
}
impl std::fmt::Display for LeaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "x")
    }
}
impl std::error::Error for LeaseError {}
impl Default for LeaseOptions {
    fn default() -> Self {
        LeaseOptions
    }
}
impl Lease {
    pub fn acquire(
        _: &std::sync::Arc<dyn Store>,
        _: &str,
        _: &str,
        _: LeaseOptions,
    ) -> Result<Lease, LeaseError> {
        Ok(Lease)
    }
    pub fn still_held(&mut self) -> Result<(), LeaseError> {
        Ok(())
    }
    pub fn release(self) -> Result<(), LeaseError> {
        Ok(())
    }
}

mod dump;
mod property;
mod scenario;

mod dump;
mod pods;
mod property;
mod scenario;

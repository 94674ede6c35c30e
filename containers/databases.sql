-- Run once by the PostgreSQL image on an empty volume.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE s3;

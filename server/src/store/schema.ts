/** Tables of the store as Kysely sees them. Times are milliseconds since 1970, JSON is text, booleans are 0 and 1. */
export interface Schema {
  jobs: JobRow;
}
export interface JobRow {
  id: string;
}

-- Puts a queue on the list of all, and tells of it if it was not there.
--
-- KEYS[1]  the set of all queues' names
-- ARGV[4]  the channel that tells of new ones
-- ARGV[5]  the name
-- Returns  'ok'
-- O(1)
-- Told first: who may not tell has changed nothing.
if redis.call('SISMEMBER', KEYS[1], ARGV[5]) == 0 then
  redis.call('PUBLISH', ARGV[4], ARGV[5])
  redis.call('SADD', KEYS[1], ARGV[5])
end
return { 'ok' }

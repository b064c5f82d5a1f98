-- What is known of one request.
--
-- ARGV[4]  id
-- Returns  'ok', then its five values (`entries.lua`), or nothing
-- O(log N)
local reply = { 'ok' }
describe(reply, ARGV[4], call('HGET', PREFIX .. 'requests', ARGV[4]))
return answer(reply)
